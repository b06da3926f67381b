"""TFDS preparations in TFRecord format, read without TensorFlow.

The format: for each record its length (8 bytes, little-endian), a checksum of these (4 bytes),
the record, a checksum of it (4 bytes). The records are the same `tf.train.Example`s that an
ArrayRecord preparation holds.
"""

import functools
import os
import struct
from collections.abc import Iterator

import google_crc32c
import tensorflow_datasets as tfds
from etils import epath

from noah_jax.data.prepare import Split
from noah_jax.errors import InputError


def plan_conversion(folder: str) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """A TFRecord preparation as a set to be written: the same records, shards and splits.

    Args:
      folder: where its `dataset_info.json` is, `DATA_DIR/NAME/VERSION`, local or `gs://`.

    Raises:
      ValueError: if there is none, or shards of it are missing.
    """
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:  # whatever a folder of another kind makes TFDS raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder} is no set that TFDS prepared (DATA_DIR/NAME/VERSION): {reason}"
        ) from error
    if info.file_format != tfds.core.FileFormat.TFRECORD:
        raise InputError(f"{folder} is stored as {info.file_format.value}, not as tfrecord")
    splits = []
    for name, split in info.splits.items():
        paths = [epath.Path(path) for path in split.filepaths]
        if missing := [path for path in paths if not path.exists()]:
            raise InputError(f"{missing[0]} is missing; prepare or copy the set again")
        size = sum(path.stat().length for path in paths)
        splits.append(
            Split(
                name,
                split.num_examples,
                [functools.partial(read_tfrecord, path) for path in paths],
                origin=f"{len(paths):,} TFRecord files, {size:,} bytes",
            )
        )
    return info, splits


def read_tfrecord(path: epath.Path) -> Iterator[bytes]:
    """The records of a file, each checked.

    Raises:
      ValueError: if one is truncated or damaged; says at which byte.
    """
    offset = 0
    with path.open("rb") as file:
        while head := file.read(12):
            length = _checked(head, 8, path, offset)
            (size,) = struct.unpack("<Q", length)
            yield _checked(file.read(size + 4), size, path, offset)
            offset += 16 + size


def _checked(data: bytes, size: int, path: epath.Path, offset: int) -> bytes:
    """The first `size` bytes, if the checksum after them is theirs."""
    content = data[:size]
    crc = google_crc32c.value(content)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if data[size:] != struct.pack("<I", masked):
        kind = "damaged" if len(data) == size + 4 else "truncated"
        raise InputError(
            f"{os.fspath(path)} is {kind} at the record at byte {offset:,}; copy it again"
        )
    return content
