"""Measures how fast images get ready for training, beside PyTorch's DataLoader on the same files.

Two recipes are measured: the CNNs' (random crop, flip) beside torchvision's transforms, and DeiT's
(with RandAugment) beside timm's, as the original composes them, with as many workers as there are
cores. Below them stand the floors on the same threads: decoding alone, and all transforms without
batches round them. Everything takes turns in one process, so that the machine's noise meets all.
PyTorch's loaders are left out where they are not installed: `pip install torch torchvision timm`.
"""

import argparse
import collections
import dataclasses
import functools
import importlib.util
import itertools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from noah_jax.benchmark.photographs import write_class_folder
from noah_jax.console import warn
from noah_jax.data.batches import num_cores, train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource, decode_and_transform
from noah_jax.data.jpeg import decode_jpeg, read_header
from noah_jax.data.randaugment import RandAugment, mean_color
from noah_jax.data.sampler import Sampler, image_random
from noah_jax.data.source import Source
from noah_jax.data.sources import open_sources
from noah_jax.data.transforms import TrainTransform
from noah_jax.models.family import IMAGENET_MEAN, IMAGENET_STD

_SIZE = (224, 224)
_FILES = 1024  # files of the made set; few enough to stay in memory, so that no disk counts
_SECONDS = 1.5  # duration of a turn
_BUFFERED = 7  # batches that may lie ready when a turn begins; they do not count
_ENDLESS = 10**9

CNN = TrainTransform("random_resized", _SIZE)
# The magnitude has no deviation here: where a deviation carries it to 10, timm 1.0 asks Pillow 13
# for an image of 0 bits, which is an error there.
DEIT = TrainTransform(
    "random_resized",
    _SIZE,
    interpolation="bicubic",
    rand_augment=RandAugment(num_ops=2, magnitude=9.0, magnitude_std=0.0),
    fill=mean_color(IMAGENET_MEAN),
)


def measure(
    contenders: dict[str, Iterator[Any]], *, batch: int, rounds: int, seconds: float | None = None
) -> dict[str, list[float]]:
    """Returns images a second of each contender, in every round.

    Args:
      contenders: Endless iterators of batches, by name.
      batch: Images of each batch.
      rounds: Number of turns of each contender.
      seconds: Duration of one turn; by default 1.5 s.
    """
    seconds = seconds or _SECONDS
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, batches in contenders.items():
            for _ in range(_BUFFERED):
                next(batches)
            start, count = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - start) < seconds:
                next(batches)
                count += batch
            if turn:  # the first turn warms up
                speeds[name].append(count / elapsed)
            time.sleep(_BUFFERED * elapsed / (count / batch))  # until the buffers are full again
    return speeds


def jax_batches(
    source: Source, transform: TrainTransform, *, batch: int, threads: int
) -> Iterator[Any]:
    """Returns the training program's batches, which stay on the host."""
    return train_batches(
        DecodedSource(source),
        transform,
        Sampler(0, len(source), batch),
        start_step=0,
        total_steps=_ENDLESS,
        num_threads=threads,
        put=lambda arrays: arrays,
        corrupt_images=CorruptImages("stop", tell=warn),
    )


def floor(
    source: Source, work: Callable[[bytes, int], Any], *, batch: int, threads: int
) -> Iterator[None]:
    """Calls `work` on the bytes of every file, in threads, and yields after every batch."""
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


def torch_batches(folder: pathlib.Path, transform: Any, *, batch: int, workers: int) -> Iterator:
    """Returns batches of torchvision's ImageFolder from a DataLoader with worker processes."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    images = ImageFolder(os.fspath(folder / "train"), transform)
    endless = RandomSampler(images, replacement=True, num_samples=_ENDLESS)
    # The workers are not forked, because this process has threads.
    loader = DataLoader(
        images, batch, sampler=endless, num_workers=workers, multiprocessing_context="forkserver"
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


def pixel_difference(source: Source, transform: TrainTransform, images: int = 64) -> np.ndarray:
    """Returns the absolute difference, in levels of 255, of approximate and exact pixels."""
    exact, approximate = (dataclasses.replace(transform, approximate=f) for f in (False, True))
    differences = []
    for index in range(min(images, len(source))):
        data, _ = source[index]
        pixels = [
            decode_and_transform(data, how, image_random(0, 0, index)).astype(np.int16)
            for how in (exact, approximate)
        ]
        differences.append(np.abs(pixels[0] - pixels[1]))
    return np.stack(differences)


def measure_and_print(args: argparse.Namespace) -> None:
    """Measures both recipes on the folder that the options name and prints their tables."""
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or pathlib.Path(made)
        if args.folder is None:
            write_class_folder(folder, files=_FILES)
        source, _ = open_sources(f"folder:{folder}")
        cores = num_cores()
        print(
            f"images/s on {cores} core(s), batch {args.batch}, medians of {args.rounds} turns;"
            f" {len(source):,} files of {args.folder or 'made photographs, 500 x 375, 110 kB'}"
        )
        run = functools.partial(_measure_recipe, folder, source, args.batch, args.rounds, cores)
        run("CNNs: random crop, flip", CNN, ("torch", "torchvision"))
        run("DeiT: RandAugment besides", DEIT, ("torch", "torchvision", "timm"))
        _measure_threads(source, args.batch, args.rounds, cores)


def _measure_recipe(
    folder: pathlib.Path,
    source: Source,
    batch: int,
    rounds: int,
    cores: int,
    title: str,
    transform: TrainTransform,
    packages: tuple[str, ...],
) -> None:
    """Measures a recipe and prints a line for each contender."""
    approximate = _approximate(transform)
    contenders = {
        name: torch_batches(folder, other, batch=batch, workers=cores)
        for name, other in _loaders_of(*packages).items()
    }
    others = list(contenders)
    variants = {"noah_jax": transform}
    if approximate:
        variants["noah_jax, approximate_decode"] = approximate
    on_device = dataclasses.replace(transform, on_device=True)
    if on_device.draw_shape is not None:
        name = "noah_jax, augment_on_device"
        contenders[name] = jax_batches(source, on_device, batch=batch, threads=cores)
    for name, variant in variants.items():
        contenders[name] = jax_batches(source, variant, batch=batch, threads=cores)
        contenders[f"  its transforms alone{name[8:]}"] = floor(
            source, _transforming(variant), batch=batch, threads=cores
        )
        contenders[f"  decoding whole images alone{name[8:]}"] = floor(
            source,
            functools.partial(_decode_whole, approximate=variant.approximate),
            batch=batch,
            threads=cores,
        )
    speeds = measure(contenders, batch=batch, rounds=rounds)
    print(f"\n{title:44} images/s" + "".join(f"  over {name}" for name in others))
    for name, values in speeds.items():
        ratios = [
            f"{statistics.median(a / b for a, b in zip(values, speeds[o], strict=True)):.2f}"
            for o in others
        ]
        cells = "".join(f"  {r:>{5 + len(o)}}" for r, o in zip(ratios, others, strict=True))
        print(f"{name:44} {statistics.median(values):8.0f}{cells}", flush=True)
    if approximate:
        difference = pixel_difference(source, transform)
        print(
            f"approximate_decode differs from Pillow's pixels by {difference.mean():.2f} levels of"
            f" 255 in the mean, {np.percentile(difference, 99):.0f} at the 99th percentile"
        )
    else:
        print(
            "OpenCV is not installed: approximate_decode is left out;"
            " pip install 'noah-jax[approximate]'"
        )


def _measure_threads(source: Source, batch: int, rounds: int, cores: int) -> None:
    counts = sorted({1, *(2**i for i in range(cores.bit_length())), cores})
    contenders = {
        str(n): jax_batches(source, CNN, batch=batch, threads=n) for n in counts if n <= cores
    }
    speeds = measure(contenders, batch=batch, rounds=rounds)
    one = statistics.median(speeds["1"])
    print("\nthreads (CNNs' recipe)   images/s   over one")
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"{name:24} {median:8.0f}   {median / one:8.2f}")


def _approximate(transform: TrainTransform) -> TrainTransform | None:
    installed = importlib.util.find_spec("cv2") is not None
    return dataclasses.replace(transform, approximate=True) if installed else None


def _decode_whole(data: bytes, index: int, *, approximate: bool) -> None:
    if (header := read_header(data)) is not None:
        decode_jpeg(data, header, approximate=approximate)


def _transforming(transform: TrainTransform) -> Callable[[bytes, int], Any]:
    return lambda data, index: decode_and_transform(data, transform, image_random(0, 0, index))


def _loaders_of(*names: str) -> dict[str, Any]:
    """Returns the transforms to compare with, by name, if these packages are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} not installed: nothing to compare with")
        return {}
    if "timm" in names:
        return {"timm": timm_transform()}
    from torchvision import transforms as tv

    # The original's loader makes float32 pixels; another loader could leave that to the device.
    return {
        "torchvision": torchvision_transform(),
        "torchvision, uint8": torchvision_transform(tv.PILToTensor()),
    }
