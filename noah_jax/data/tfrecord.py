"""Reads datasets that TFDS prepared in TFRecord format, without TensorFlow.

A TFRecord file has for each record its length (8 bytes, little-endian), a checksum of the length
(4 bytes), the record, and a checksum of the record (4 bytes). The records are the same
`tf.train.Example`s as in ArrayRecord format.
"""

import functools
import os
import struct
from collections.abc import Callable, Iterator

import google_crc32c
import tensorflow_datasets as tfds
from etils import epath

from noah_jax.data.prepare import Split
from noah_jax.errors import InputError, one_line


def plan_conversion(folder: str) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """Plans a dataset with the records, shards and splits of one in TFRecord format.

    Args:
      folder: Folder of the dataset's `dataset_info.json`, `DATA_DIR/NAME/VERSION`, local or
        `gs://`.

    Raises:
      InputError: If there is no such dataset, or some of its shards are missing.
    """
    return open_prepared(folder, tfds.core.FileFormat.TFRECORD, read_tfrecord)


def open_prepared(
    folder: str,
    file_format: tfds.core.FileFormat,
    read: Callable[[epath.Path], Iterator[bytes]],
) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """Plans a dataset with the records, shards and splits of one that is there.

    Args:
      folder: Folder of the dataset's `dataset_info.json`.
      file_format: The format that it must have.
      read: Yields the records of a file.

    Raises:
      InputError: If there is no such dataset, or some of its shards are missing.
    """
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:  # TFDS raises errors of many kinds for other folders
        raise InputError(
            f"{folder} is no dataset that TFDS prepared (DATA_DIR/NAME/VERSION):"
            f" {one_line(error, 200)}"
        ) from error
    if info.file_format != file_format:
        raise InputError(
            f"{folder} is stored as {info.file_format.value}, not as {file_format.value}"
        )
    kind = "TFRecord" if file_format == tfds.core.FileFormat.TFRECORD else "ArrayRecord"
    splits = []
    for name, split in info.splits.items():
        paths = [epath.Path(path) for path in split.filepaths]
        if missing := [path for path in paths if not path.exists()]:
            raise InputError(f"{missing[0]} is missing; prepare or copy the dataset again")
        size = sum(path.stat().length for path in paths)
        splits.append(
            Split(
                name,
                split.num_examples,
                [functools.partial(read, path) for path in paths],
                origin=f"{len(paths):,} {kind} files, {size:,} bytes",
            )
        )
    return info, splits


def read_tfrecord(path: epath.Path) -> Iterator[bytes]:
    """Reads the records of a file and compares each with its checksum.

    Raises:
      InputError: If a record is truncated or corrupt; says at which byte.
    """
    offset = 0
    with path.open("rb") as file:
        while head := file.read(12):
            length = _checked(head, 8, path, offset)
            (size,) = struct.unpack("<Q", length)
            yield _checked(file.read(size + 4), size, path, offset)
            offset += 16 + size


def _checked(data: bytes, size: int, path: epath.Path, offset: int) -> bytes:
    """Returns the first `size` bytes if they fit the checksum that follows them."""
    content = data[:size]
    crc = google_crc32c.value(content)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    if data[size:] != struct.pack("<I", masked):
        problem = "corrupt" if len(data) == size + 4 else "truncated"
        raise InputError(
            f"{os.fspath(path)} is {problem} at the record at byte {offset:,}; copy it again"
        )
    return content
