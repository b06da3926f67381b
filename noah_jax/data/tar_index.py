"""Reads from the headers of a tar file where its images are, and their labels.

A sample of WebDataset is a run of members with the same name up to its first dot:
`000123.jpg`, `000123.cls`, `000123.json`.
"""

import contextlib
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from noah_jax.data.source import IMAGE_SUFFIXES
from noah_jax.errors import InputError, NoahError, one_line
from noah_jax.files import whole

_VERSION = 1
_LABEL_KEYS = ("label", "labels")  # in a sample's JSON
# No label is longer; a text that happens to have the same suffix may be.
_LONGEST_LABEL = 2**20
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd")


class TarIndex(NamedTuple):
    """The samples of a tar file that have an image, in their order.

    Attributes:
      offset: int64 `[samples]`, where the image starts in the file.
      size: int64 `[samples]`, the image's bytes.
      key: bytes `[samples]`, the image's path in the tar file.
      label: bytes `[samples]`, the label as JSON: a whole number, a text or a list of them; empty
        if there is none.
    """

    offset: np.ndarray
    size: np.ndarray
    key: np.ndarray
    label: np.ndarray


def load_index(path: str, make: Callable[[], TarIndex]) -> TarIndex:
    """Reads an index from a file; makes and writes it if it is not there or corrupt.

    NumPy's format is a zip file, whose checksums are checked when it is read.

    Args:
      path: The file. If it cannot be written, the index is made anew at the next start.
      make: Makes the index.
    """
    unusable = (OSError, ValueError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(*unusable), np.load(path) as file:
        if int(file["version"]) == _VERSION:
            return TarIndex(*(file[name] for name in TarIndex._fields))
    index = make()
    with contextlib.suppress(OSError, NoahError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with whole(path) as partial, open(partial, "wb") as file:
            np.savez(file, version=_VERSION, **index._asdict())
    return index


def index_tar(path: str, name: str | None = None) -> TarIndex:
    """Reads the index of a local tar file.

    Args:
      path: The file.
      name: How messages call it.

    Raises:
      InputError: If it is compressed, truncated or no tar file.
    """
    name = name or path
    rows: list[tuple[int, int, bytes, bytes]] = []
    with _opened(path, name) as file:
        sample: dict[str, Any] = {}
        for member in _members(file, name):
            key, suffix = _split(member.name)
            if sample.get("key") != key:
                rows += _row(sample)
                sample = {"key": key}
            if f".{suffix}" in IMAGE_SUFFIXES:
                sample.setdefault("image", member)
            elif suffix == "cls" and member.size < _LONGEST_LABEL:
                sample["cls"] = _read(file, member)
            elif suffix == "json" and member.size < _LONGEST_LABEL:
                sample["json"] = _read(file, member)
        rows += _row(sample)
    if not rows:
        numbers, texts = np.zeros(0, np.int64), np.zeros(0, np.bytes_)
        return TarIndex(numbers, numbers, texts, texts)
    return TarIndex(*map(np.array, zip(*rows, strict=True)))


@contextlib.contextmanager
def _opened(path: str, name: str) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            if (start := file.read(6)).startswith(_COMPRESSED):
                raise InputError(
                    f"{name} is compressed, so single images cannot be read from it; decompress it"
                )
            file.seek(0)
            if not start:
                raise InputError(f"{name} is empty; get it again")
            yield file
    except OSError as error:
        raise InputError(f"{name} cannot be read: {one_line(error, 200)}") from error


def _members(file: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
    """Yields the files in a tar file. Between two of them the file may be read elsewhere."""
    end = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                member_end = member.offset_data + member.size
                if member_end > end:
                    raise InputError(
                        f"{name} is truncated: it has {end:,} bytes and {member.name} in it goes"
                        f" to byte {member_end:,}; get it again"
                    )
                if member.isfile():
                    yield member
            # `tarfile` takes a corrupt header for the end of the file, which is made of zeros.
            file.seek(tar.offset)
            if tar.offset < end and file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise InputError(f"{name} is corrupt at byte {tar.offset:,}; get it again")
    except tarfile.TarError as error:
        raise InputError(
            f"{name} is no tar file, or is truncated or corrupt: {one_line(error, 200)}"
        ) from error


def _split(path: str) -> tuple[str, str]:
    """Splits a member's path at the first dot of its last part; hidden files have no suffix."""
    folder, slash, name = path.rpartition("/")
    stem, _, suffix = name.partition(".")
    return (folder + slash + stem, suffix.lower()) if stem else (path, "")


def _read(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def _row(sample: dict[str, Any]) -> list[tuple[int, int, bytes, bytes]]:
    """Returns the row of a sample, or nothing if it has no image."""
    image = sample.get("image")
    if image is None:
        return []
    label = _label(sample)
    text = b"" if label is None else json.dumps(label).encode()
    key = image.name.encode("utf-8", "surrogateescape")
    return [(image.offset_data, image.size, key, text)]


def _label(sample: dict[str, Any]) -> Any:
    """Returns a whole number, a text, a list of them, or `None`."""
    if "cls" in sample:
        return _parsed(sample["cls"].decode("utf-8", "replace").strip())
    try:
        fields = json.loads(sample.get("json", b"{}"))
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    value = next((fields[key] for key in _LABEL_KEYS if key in fields), None)
    return _parsed(value) if isinstance(value, str) else _checked(value)


def _parsed(text: str) -> Any:
    """Returns what a text says: a number, a list in brackets or of numbers, or a class's name."""
    with contextlib.suppress(ValueError):
        value = _checked(json.loads(text))
        if value is not None:
            return value
    words = text.replace(",", " ").split()
    if len(words) > 1 and all(word.isdecimal() for word in words):
        return [int(word) for word in words]
    return text or None


def _checked(value: Any) -> Any:
    if isinstance(value, list):
        return value if all(_checked(item) is not None for item in value) else None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None
