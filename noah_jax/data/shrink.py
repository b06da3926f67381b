"""Shrinks the images of a dataset that is to be prepared to about the size that training needs.

An image whose longer side is above the limit is decoded as for training, resized by Pillow's
bicubic filter and stored as JPEG; all others keep their bytes. The files have restart markers in
every row of their blocks, so that training decodes only what a crop needs; see
`noah_jax.data.jpeg_regions`. Records keep everything else, and their order.
"""

import contextlib
import dataclasses
import functools
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.proto import tf_example_pb2

from noah_jax.console import warn
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import decode
from noah_jax.data.jpeg import read_header
from noah_jax.data.prepare import Split, check_name
from noah_jax.data.raw import encode_raw
from noah_jax.data.resize import resize
from noah_jax.data.shrunk import SUBSAMPLING, Shrinking, read_shrinking
from noah_jax.data.tfds import FILE_NAME, MULTI_LABEL_FILE_NAME, only_feature
from noah_jax.errors import CorruptImageError, InputError

_MOST_BLOCKS = 5  # between two restart markers; fewer cost bytes, more make crops dearer


def shrink_image(data: bytes, shrinking: Shrinking, name: str = "the image") -> bytes:
    """Returns an image with fewer pixels, or unchanged if it is small enough.

    Args:
      data: The encoded image.
      shrinking: What to do.
      name: How error messages call the image.

    Returns:
      A JPEG file without metadata, grey where the image is grey, else RGB; or raw pixels.

    Raises:
      CorruptImageError: If the image cannot be decoded; see `noah_jax.data.decoding.decode`.
    """
    if not shrinking.raw and (size := _read_size(data)) and shrinking.size(*size) == size:
        return data
    pixels = decode(data, name)
    height, width, _ = pixels.shape
    size = shrinking.size(width, height)
    if size != (width, height):
        pixels = resize(pixels, size[::-1], "bicubic")
    elif not shrinking.raw:
        return data
    return encode_raw(pixels) if shrinking.raw else encode_jpeg(pixels, shrinking.quality)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Encodes uint8 pixels `[height, width, 3]` as JPEG with restart markers in every row."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        image, block = Image.fromarray(np.ascontiguousarray(red)), 8
    else:
        image, block = Image.fromarray(pixels), 16
    blocks = -(-image.width // block)
    interval = max(n for n in range(1, _MOST_BLOCKS + 1) if blocks % n == 0)
    # Pillow encodes into memory under Python's lock, and into files without.
    with _scratch_file() as file:
        image.save(
            file,
            "JPEG",
            quality=quality,
            subsampling=SUBSAMPLING,
            restart_marker_blocks=interval,
            optimize=True,  # takes three times as long, and 3 to 5 % off the bytes
        )
        file.seek(0)
        return file.read()


def shrink_dataset(
    info: tfds.core.DatasetInfo,
    splits: Sequence[Split],
    shrinking: Shrinking,
    *,
    name: str | None = None,
    shrink_splits: Sequence[str] | None = None,
) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """Plans a dataset with the images of another plan, shrunk.

    Args:
      info: Description of the other dataset.
      splits: Its splits.
      shrinking: What to do to the images.
      name: Name of the new dataset; by default the other's with `Shrinking.suffix`.
      shrink_splits: Names of the splits whose images are shrunk; by default those that begin with
        "train". The others keep their images.

    Returns:
      The new dataset's description and its splits. Images that cannot be decoded keep their bytes
      and are named in a warning.

    Raises:
      InputError: If a split does not exist, the dataset is shrunk already or has not exactly one
        image for each label, or the name cannot be a dataset's.
    """
    if (earlier := read_shrinking(info.metadata)) is not None:
        raise InputError(
            f"the images of {info.full_name} are {earlier.describe()} already; shrink the originals"
        )
    names = [split.name for split in splits]
    chosen = list(shrink_splits or (name for name in names if name.startswith("train")))
    unknown = [split for split in chosen if split not in names]
    if unknown or not chosen:
        what = f"no split {unknown[0]!r}" if unknown else "no training split to shrink"
        raise InputError(f"{info.full_name} has {what}; name some of {', '.join(names)}")
    name = name or f"{info.name}{shrinking.suffix}"
    check_name(name)
    key = only_feature(info.features, tfds.features.Image, info.full_name)
    work = functools.partial(_ShrinkRecord, key, shrinking, CorruptImages("replace", tell=warn))
    return _describe(info, name, key, shrinking, chosen), [
        _shrink_split(split, work(split.name), shrinking) if split.name in chosen else split
        for split in splits
    ]


def _describe(
    info: tfds.core.DatasetInfo, name: str, key: str, shrinking: Shrinking, splits: list[str]
) -> tfds.core.DatasetInfo:
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    return tfds.core.DatasetInfo(
        builder=DatasetIdentity(name=name, version=info.version, data_dir="", module_name=__name__),
        description=(
            f"{info.full_name}, prepared by noah_jax with images {shrinking.describe()} in"
            f" {', '.join(splits)}."
        ),
        features=tfds.features.FeaturesDict({**info.features, key: image}),
        supervised_keys=info.supervised_keys,
        homepage=next(iter(info.as_proto.location.urls), None),
        citation=info.citation,
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(shrinking.to_metadata(info.full_name, splits)),
    )


def _shrink_split(split: Split, shrink: "_ShrinkRecord", shrinking: Shrinking) -> Split:
    return dataclasses.replace(
        split,
        change=shrink,
        origin=f"{split.origin}; {shrinking.describe()}",
        # JPEG files and the noise in raw pixels hardly get smaller, and unpacking takes longer than
        # reading.
        compressed=False,
    )


@dataclasses.dataclass(frozen=True)
class _ShrinkRecord:
    """Shrinks the image of a record, a serialised `tf.train.Example`.

    Attributes:
      key: Name of the image's feature.
      shrinking: What to do.
      corrupt_images: Told of the images that cannot be decoded.
      split: Name of the split, for messages.
    """

    key: str
    shrinking: Shrinking
    corrupt_images: CorruptImages
    split: str

    def __call__(self, record: bytes) -> bytes:
        example = tf_example_pb2.Example.FromString(record)
        values = example.features.feature
        image = values[self.key].bytes_list.value
        name = next(
            (
                values[key].bytes_list.value[0].decode(errors="replace")
                for key in (FILE_NAME, MULTI_LABEL_FILE_NAME)
                if key in values and values[key].bytes_list.value
            ),
            f"an image of {len(image[0]):,} bytes",
        )
        try:
            smaller = shrink_image(image[0], self.shrinking, f"{name} of {self.split}")
        except CorruptImageError as error:
            self.corrupt_images.add(error)
            return record
        if smaller is image[0] or smaller == image[0]:
            return record
        image[0] = smaller
        return example.SerializeToString(deterministic=True)


def _read_size(data: bytes) -> tuple[int, int] | None:
    """Returns width and height in pixels without decoding; `None` if the header cannot be read."""
    if (header := read_header(data)) is not None:
        return header.width, header.height
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        return image.size
    return None


def _scratch_file() -> IO[bytes]:
    """Opens a file that is gone when it is closed; in memory, where the system has such files."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("jpeg"), "w+b")
    return tempfile.TemporaryFile()
