"""Reads the files that torch.save wrote before PyTorch 1.6, without PyTorch.

Such a file is five pickles, one after another (a magic number, a version, facts about the machine,
the object, and the names of the storages), and then the storages: the number of elements of each,
in eight bytes, and the elements. torchvision's weights of 2019 and before are such files.
"""

import dataclasses
import mmap
import os
from typing import Any

import numpy as np

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.archive import Record
from noah_jax.pytorch.files.placeholders import NUMPY_CALLS
from noah_jax.pytorch.files.tensors import TORCH_CALLS, Storage, stated_storage
from noah_jax.pytorch.files.unpickle import loads_first

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_RESAVE = "load it in a recent PyTorch and torch.save it again"
_LENGTH = 8  # bytes of the number of elements in front of a storage


@dataclasses.dataclass(slots=True)
class _Records:
    """The storages of a file, in place of a zip file's records.

    Attributes:
      path: Path of the file, for messages.
      data: The file's bytes.
      records: The storages by name. Where they start is known last.
      arrays: See `Archive`.
      counts: Numbers of elements, by the names of the storages.
    """

    path: str | os.PathLike
    data: mmap.mmap
    records: dict[str, Record]
    arrays: dict[tuple[str, np.dtype], np.ndarray]
    counts: dict[str, int]

    def read(self, record: Record) -> memoryview:
        """Returns a storage's bytes in place."""
        record = self.records[record.name]
        return memoryview(self.data)[record.start : record.start + record.size]


def is_legacy(data: mmap.mmap) -> bool:
    """Says whether a file starts with the magic number of such files."""
    return _MAGIC.to_bytes(10, "little") in data[:16]


def read_legacy(path: str | os.PathLike, data: mmap.mmap) -> Any:
    """Reads the object of a file; what it is made of, see `read_checkpoint`.

    Args:
      path: Path of the file, for messages.
      data: The file's bytes.

    Raises:
      ReadError: If the file is corrupt, or of a kind that nothing here reads.
    """
    file = _Records(path, data, {}, {}, {})
    position = 0

    def storage(pid: Any) -> Storage:
        found = stated_storage(file, pid)
        known = file.records.setdefault(found.record.name, found.record)
        if known.size != found.record.size:
            raise ReadError(f"storage {known.name!r} has two sizes")
        file.counts[known.name] = found.numel
        return found

    def next_pickle(persistent_load: Any = None) -> Any:
        nonlocal position
        try:
            value, end = loads_first(
                data, TORCH_CALLS | NUMPY_CALLS, persistent_load or _none_expected, position
            )
        except ReadError as error:
            raise ReadError(f"{path}: written before PyTorch 1.6: {error}; {_RESAVE}") from None
        position = end
        return value

    magic, version, machine = (next_pickle() for _ in range(3))
    if magic != _MAGIC or version != _VERSION or type(machine) is not dict:
        raise ReadError(f"{path}: written before PyTorch 1.6, in a form not known; {_RESAVE}")
    if machine.get("little_endian") is not True:
        raise ReadError(f"{path}: written on a big-endian machine; {_RESAVE}")
    tree = next_pickle(storage)
    names = next_pickle()
    if type(names) is not list or sorted(map(str, names)) != sorted(file.records):
        raise ReadError(f"{path}: its list of storages is not that of its tensors; {_RESAVE}")
    for name in names:
        position = _place(file, name, position)
    return tree


def _place(file: _Records, name: str, position: int) -> int:
    """Finds where a storage starts; returns where it ends."""
    record = file.records[name]
    start = position + _LENGTH
    count = int.from_bytes(file.data[position:start], "little")
    if start + record.size > len(file.data) or count != file.counts[name]:
        raise ReadError(
            f"{file.path}: storage {name!r} of {file.counts[name]} elements is not where it should"
            " be; the file is corrupt or truncated, copy or download it again"
        )
    file.records[name] = dataclasses.replace(record, start=start)
    return start + record.size


def _none_expected(pid: Any) -> Any:
    raise ReadError("a storage where none is expected")
