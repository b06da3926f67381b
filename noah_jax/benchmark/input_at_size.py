"""Takes part in the input benchmark with sets of shrunk images, written as by `prepare --max-side`.

A part of the benchmark's images is prepared in a temporary folder, once for each kind of set.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from noah_jax.benchmark.input_contenders import Contenders, Setting, jax_batches
from noah_jax.console import say
from noah_jax.data.decoding import decode
from noah_jax.data.prepare import plan_folders, prepare
from noah_jax.data.sampler import image_random
from noah_jax.data.shrink import shrink_dataset, shrink_image
from noah_jax.data.shrunk import Shrinking
from noah_jax.data.source import Source
from noah_jax.data.sources import open_sources
from noah_jax.data.transforms import TrainTransform

_NAME = "photographs"
_SETS = (Shrinking(400), Shrinking(400, quality=90), Shrinking(512), Shrinking(400, raw=True))
_LOOKED_AT = 32  # images whose size is looked at


def at_size_contenders(setting: Setting) -> Contenders:
    """Returns noah_jax's loader on sets of shrunk images, and says what they save and change."""
    transform = setting.recipe.transform
    on_device = dataclasses.replace(transform, on_device=True)
    suffix = ""
    if on_device.draw_shape is not None:
        transform, suffix = on_device, ", augment_on_device"
    contenders: Contenders = {}
    sizes = {
        decode(setting.source[index][0]).shape[1::-1]
        for index in range(min(len(setting.source), _LOOKED_AT))
    }
    for shrinking in _SETS:
        side = [] if shrinking.max_side is None else [f"{shrinking.max_side} px"]
        kind = "raw" if shrinking.raw else f"quality {shrinking.quality}"
        name = ", ".join([*side, kind])
        if not shrinking.raw and all(shrinking.size(*size) == size for size in sizes):
            say(f"no image has more than {shrinking.max_side} px: such a set would be the same")
            continue
        contenders[f"noah_jax, {name}{suffix}"] = _batches(setting, shrinking, transform, name)
    return contenders


def _batches(
    setting: Setting, shrinking: Shrinking, transform: TrainTransform, name: str
) -> Iterator[Any]:
    """Prepares the set at the first batch; it is there as long as the batches are."""
    with tempfile.TemporaryDirectory() as folder:
        source = prepare_shrunk(setting.folder, shrinking, pathlib.Path(folder))
        before, after = (
            sum(len(images[index][0]) for index in range(len(source))) / len(source)
            for images in (setting.source, source)
        )
        difference = crop_difference(setting.source, shrinking, setting.recipe.transform)
        say(
            f"{name}: {before / 1000:,.1f} -> {after / 1000:,.1f} kB an image; the same crops"
            f" differ by {difference.mean():.2f} levels of 255 in the mean,"
            f" {np.percentile(difference, 99):.0f} at the 99th percentile"
        )
        yield from jax_batches(setting, transform, source=source)


def prepare_shrunk(folder: pathlib.Path, shrinking: Shrinking, data_dir: pathlib.Path) -> Source:
    """Prepares the first training images of class folders, one shard of them, and opens them."""
    info, splits = plan_folders(str(folder), _NAME)
    few = []
    for split in splits[:2]:
        count = sum(1 for _ in split.shards[0]())
        few.append(dataclasses.replace(split, shards=split.shards[:1], num_images=count))
    info, few = shrink_dataset(info, few, shrinking)
    prepare(info, few, str(data_dir), tell=lambda line: None)
    return open_sources(info.name, data_dir=str(data_dir))[0]


def crop_difference(
    source: Source, shrinking: Shrinking, transform: TrainTransform, images: int = 64
) -> np.ndarray:
    """Returns how much the training crops of shrunk images differ from those of the originals.

    Args:
      source: The original images.
      shrinking: What is done to them.
      transform: Draws the crops; they are the same part of the image before and after.
      images: Number of images, from the first on.

    Returns:
      float32 `[images, height, width, 3]`, the absolute difference in levels of 255.
    """
    size = transform.size[::-1]
    method = Image.Resampling[transform.interpolation.upper()]
    differences = []
    for index in range(min(images, len(source))):
        data, _ = source[index]
        image, shrunk = (Image.fromarray(decode(d)) for d in (data, shrink_image(data, shrinking)))
        box = transform.draw(image.size, image_random(0, 0, index)).box
        assert box is not None
        across, down = (a / b for a, b in zip(shrunk.size, image.size, strict=True))
        left, top, right, bottom = box
        moved = (left * across, top * down, right * across, bottom * down)
        crops = [image.resize(size, method, box), shrunk.resize(size, method, moved)]
        first, second = (np.asarray(crop, np.float32) for crop in crops)
        differences.append(np.abs(first - second))
    return np.stack(differences)
