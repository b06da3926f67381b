"""Who takes part in the input benchmark: noah_jax's own loader, its floors, and PyTorch's.

A module of contenders has a function that takes a `Setting` and returns endless iterators of
batches by name; none, where what it needs is not installed. `noah_jax.benchmark.input` lists these
functions and measures what they return.
"""

import collections
import dataclasses
import functools
import importlib.util
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from noah_jax.console import say, warn
from noah_jax.data.batches import train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource, decode_and_transform
from noah_jax.data.jpeg import decode_jpeg, read_header
from noah_jax.data.randaugment import RandAugment, mean_color
from noah_jax.data.sampler import Sampler, image_random
from noah_jax.data.source import Source
from noah_jax.data.transforms import TrainTransform
from noah_jax.models.family import IMAGENET_MEAN, IMAGENET_STD

ENDLESS = 10**9
_SIZE = (224, 224)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe whose input is measured.

    Attributes:
      name: Its name as an option.
      title: Its name in the table.
      transform: Its training transform, bit-equal to Pillow and with all operations on the host.
      packages: Packages of the loader that the original has.
    """

    name: str
    title: str
    transform: TrainTransform
    packages: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all contenders have in common.

    Attributes:
      recipe: The recipe.
      folder: Folder with `train/CLASS/image.jpg`.
      source: The same training images.
      batch: Images of a batch.
      cores: Number of cores; a contender has as many threads or worker processes.
    """

    recipe: Recipe
    folder: pathlib.Path
    source: Source
    batch: int
    cores: int


Contenders = dict[str, Iterator[Any]]  # endless iterators of batches, by name

CNN = Recipe(
    "cnn",
    "CNNs: random crop, flip",
    TrainTransform("random_resized", _SIZE),
    ("torch", "torchvision"),
)
# The magnitude has no deviation here: where a deviation carries it to 10, timm 1.0 asks Pillow 13
# for an image of 0 bits, which is an error there.
DEIT = Recipe(
    "deit",
    "DeiT: RandAugment besides",
    TrainTransform(
        "random_resized",
        _SIZE,
        interpolation="bicubic",
        rand_augment=RandAugment(num_ops=2, magnitude=9.0, magnitude_std=0.0),
        fill=mean_color(IMAGENET_MEAN),
    ),
    ("torch", "torchvision", "timm"),
)
RECIPES = {recipe.name: recipe for recipe in (CNN, DEIT)}


def approximate(transform: TrainTransform) -> TrainTransform | None:
    """Returns the transform with approximate decoding; `None` if OpenCV is not installed."""
    installed = importlib.util.find_spec("cv2") is not None
    return dataclasses.replace(transform, approximate=True) if installed else None


def own_contenders(setting: Setting) -> Contenders:
    """Returns noah_jax's loader in its variants, and the floors on the same threads."""
    transform = setting.recipe.transform
    faster = approximate(transform)
    contenders = {"noah_jax": jax_batches(setting, transform)}
    on_device = dataclasses.replace(transform, on_device=True)
    if on_device.draw_shape is not None:
        contenders["noah_jax, augment_on_device"] = jax_batches(setting, on_device)
    if faster:
        contenders["noah_jax, approximate_decode"] = jax_batches(setting, faster)
    else:
        say(
            "OpenCV is not installed: approximate_decode is left out;"
            " pip install 'noah-jax[approximate]'"
        )
    contenders["  its transforms alone"] = floor(setting, _transforming(transform))
    for variant in (transform, faster):
        if variant and setting.recipe is CNN:  # decoding is the same in every recipe
            name = "  decoding whole images alone"
            work = functools.partial(_decode_whole, approximate=variant.approximate)
            name += ", approximate_decode" if variant.approximate else ""
            contenders[name] = floor(setting, work)
    return contenders


def jax_batches(
    setting: Setting,
    transform: TrainTransform,
    *,
    source: Source | None = None,
    threads: int | None = None,
) -> Iterator[Any]:
    """Returns the training program's batches, which stay on the host.

    Args:
      setting: What all contenders have in common.
      transform: The transform to measure.
      source: Images to read instead of the setting's.
      threads: Number of threads instead of one for each core.
    """
    source = setting.source if source is None else source
    return train_batches(
        DecodedSource(source),
        transform,
        Sampler(0, len(source), setting.batch),
        start_step=0,
        total_steps=ENDLESS,
        num_threads=threads or setting.cores,
        put=lambda arrays: arrays,
        corrupt_images=CorruptImages("stop", tell=warn),
    )


def floor(setting: Setting, work: Callable[[bytes, int], Any]) -> Iterator[None]:
    """Calls `work` on the bytes of every file, in threads, and yields after every batch."""
    source, batch, threads = setting.source, setting.batch, setting.cores
    data = [source[index][0] for index in range(len(source))]

    def part(start: int) -> None:
        for index in range(start, start + batch):
            work(data[index % len(data)], index)

    with ThreadPoolExecutor(threads) as pool:
        # Each thread has a batch of its own and one more waits, so that none ever runs dry.
        under_way = collections.deque(pool.submit(part, i * batch) for i in range(threads + 1))
        for i in itertools.count(threads + 1):
            under_way.popleft().result()
            under_way.append(pool.submit(part, i * batch))
            yield


def _decode_whole(data: bytes, index: int, *, approximate: bool) -> None:
    if (header := read_header(data)) is not None:
        decode_jpeg(data, header, approximate=approximate)


def _transforming(transform: TrainTransform) -> Callable[[bytes, int], Any]:
    return lambda data, index: decode_and_transform(data, transform, image_random(0, 0, index))


def torch_contenders(setting: Setting) -> Contenders:
    """Returns PyTorch's DataLoader with the transforms that the original composes."""
    packages = setting.recipe.packages
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        say(f"{', '.join(missing)} not installed: nothing to compare with")
        return {}
    if setting.recipe is DEIT:
        return {"timm": torch_batches(setting, timm_transform())}
    from torchvision import transforms as tv

    # The original's loader makes float32 pixels; another loader could leave that to the device.
    return {
        "torchvision": torch_batches(setting, torchvision_transform()),
        "torchvision, uint8": torch_batches(setting, torchvision_transform(tv.PILToTensor())),
    }


def torch_batches(setting: Setting, transform: Any) -> Iterator[Any]:
    """Returns batches of torchvision's ImageFolder from a DataLoader with worker processes."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    images = ImageFolder(os.fspath(setting.folder / "train"), transform)
    endless = RandomSampler(images, replacement=True, num_samples=ENDLESS)
    # The workers are not forked, because this process has threads.
    loader = DataLoader(
        images,
        setting.batch,
        sampler=endless,
        num_workers=setting.cores,
        multiprocessing_context="forkserver",
    )
    return iter(loader)


def torchvision_transform(to_tensor: Any = None) -> Any:
    """Returns the original's training transform for CNNs; `to_tensor` replaces its end."""
    from torchvision import transforms as tv

    end = [tv.ToTensor(), tv.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return tv.Compose(
        [
            tv.RandomResizedCrop(_SIZE[0]),
            tv.RandomHorizontalFlip(),
            *(end if to_tensor is None else [to_tensor]),
        ]
    )


def timm_transform() -> Any:
    """Returns the original's training transform for DeiT without erasing, a part of our step."""
    from timm.data import create_transform

    return create_transform(
        _SIZE[0],
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0-inc1",
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
