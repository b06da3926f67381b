"""Tensors and storages of PyTorch's files, as arrays that are read on demand."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.archive import Archive, Record
from noah_jax.pytorch.files.placeholders import Global, Opaque

# PyTorch's dtype -> NumPy's dtype, in the files' byte order.
DTYPES: dict[str, np.dtype] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "bool": np.dtype("?"),
}
# PyTorch names the classes of storages after C's types.
_STORAGES = {
    "BFloat16": "bfloat16", "Half": "float16", "Float": "float32", "Double": "float64",
    "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64",
    "Byte": "uint8", "Bool": "bool", "Untyped": "uint8",
}  # fmt: skip

# Functions of PyTorch that rebuild tensors which are not strided arrays of values.
_NOT_STRIDED = {
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
}

_MAX_NDIM = 32
# A view that repeats elements (`expand`) may have this many even if its storage has fewer.
_MAX_REPEATED = 2**22


class Records(Protocol):
    """What has the records: an `Archive`, or a file of an older format."""

    arrays: dict[tuple[str, np.dtype], np.ndarray]

    def read(self, record: Record) -> memoryview: ...


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A record of numbers that tensors view.

    Attributes:
      archive: The archive that has the record.
      record: The record with the numbers.
      dtype: Type of the elements; `None` if NumPy has no such type.
      numel: Number of elements.
      kind: PyTorch's name for the storage's class, for messages.
    """

    archive: "Records"
    record: Record
    dtype: np.dtype | None
    numel: int
    kind: str

    def flat(self, dtype: np.dtype) -> np.ndarray:
        """Returns all elements as a read-only array `[n]` of a dtype.

        The array is made once per dtype, because some have to be copied from the file.

        Raises:
          ReadError: If the bytes in the file differ from their checksum.
        """
        arrays = self.archive.arrays
        key = (self.record.name, dtype)
        if key not in arrays:
            data = self.archive.read(self.record)
            arrays[key] = flat_array(data, dtype, len(data) // dtype.itemsize)
        return arrays[key]


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A view into a storage; `numpy()` gives its values.

    Attributes:
      storage: The storage that it views.
      dtype: NumPy dtype of the values; may be `ml_dtypes.bfloat16`.
      shape: Lengths of the dimensions.
      strides: Strides in elements, as PyTorch counts them.
      offset: Position of the first element in the storage, in elements.
    """

    storage: Storage
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def numpy(self) -> np.ndarray:
        """Returns the values, read-only and, if possible, mapped from the file.

        Raises:
          ReadError: If the bytes in the file differ from their checksum.
        """
        if 0 in self.shape:
            return flat_array(b"", self.dtype, 0).reshape(self.shape)
        size = self.dtype.itemsize
        strides = [stride * size for stride in self.strides]
        flat = self.storage.flat(self.dtype)
        return np.ndarray(self.shape, self.dtype, flat, self.offset * size, strides)


def flat_array(buffer: Any, dtype: np.dtype, count: int, start: int = 0) -> np.ndarray:
    """Returns `count` numbers from byte `start` of a buffer, without a copy if possible."""
    if count == 0:
        array = np.zeros(0, dtype)
    elif dtype == np.bool_:
        # PyTorch takes any byte but 0 as true; NumPy's bool defines only 0 and 1.
        array = np.frombuffer(buffer, np.uint8, count, start) != 0
    else:
        array = np.frombuffer(buffer, dtype, count, start)
        if not array.flags.aligned:
            # PyTorch aligns its records; other writers may not.
            array = array.copy()
    array.flags.writeable = False
    return array


def load_storage(archive: Archive, folder: str, pid: Any) -> Storage:
    """Returns the storage that a persistent id names, which is record `FOLDER/data/KEY`.

    Raises:
      ReadError: If there is no such record, or its size is not the one that the id states.
    """
    kind, key, numel = _parts(pid)
    name = f"{folder}/data/{key[:64]}"
    record = archive.records.get(name) if len(key) <= 64 else None
    if record is None:
        raise ReadError(f"expected record {name!r}, which the file lacks")
    dtype = _dtype(kind)
    if dtype is not None and record.size != numel * dtype.itemsize:
        raise ReadError(
            f"record {record.name!r} has {record.size} bytes,"
            f" expected {numel} x {dtype.itemsize} for a {kind}"
        )
    return Storage(archive, record, dtype, numel, kind)


def stated_storage(archive: Records, pid: Any) -> Storage:
    """Returns the storage that a persistent id names, by what the id states of it.

    Where its record starts in the file is not known yet.

    Raises:
      ReadError: If it has elements of a type that NumPy lacks, or is a view of another storage.
    """
    kind, key, numel = _parts(pid)
    dtype = _dtype(kind)
    if dtype is None:
        raise ReadError(f"a {kind}, whose elements are of no type that is read here")
    if len(pid) > 5 and pid[5] is not None:
        raise ReadError("a storage that is a view of another")
    record = Record(key[:64], 0, numel * dtype.itemsize, 0, True)
    return Storage(archive, record, dtype, numel, kind)


def _parts(pid: Any) -> tuple[str, str, int]:
    """Returns the kind of a storage, its key and its number of elements."""
    if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
        raise ReadError("the persistent id is not the id of a storage")
    _, cls, key, _, numel = pid[:5]
    if type(cls) is not Global or type(key) is not str or not _is_count(numel):
        raise ReadError("the persistent id is not the id of a storage")
    return cls.name.rpartition(".")[2], key, numel


def _dtype(kind: str) -> np.dtype | None:
    return DTYPES.get(_STORAGES.get(kind.removesuffix("Storage"), ""))


def describe(value: Any) -> str:
    """Says in a few words what a value from a file is."""
    if type(value) is Global:
        return value.name
    if type(value) is not Opaque:
        return f"a {type(value).__name__}"
    return _NOT_STRIDED.get(value.name, value.name)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _make(storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any) -> Tensor:
    for name, values in (("shape", shape), ("strides", strides)):
        if type(values) is not tuple or not all(map(_is_count, values)):
            raise ReadError(f"a tensor's {name} must be whole numbers from 0 up")
    if not _is_count(offset) or len(shape) != len(strides) or len(shape) > _MAX_NDIM:
        raise ReadError(
            f"a tensor of {len(shape)} dimensions with {len(strides)} strides and offset"
            f" {offset if _is_count(offset) else '?'}"
        )
    where = f"a tensor of shape {shape} in {storage.kind} {storage.record.name!r}"
    available = storage.record.size // dtype.itemsize
    numel = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if numel and last >= available:
        raise ReadError(f"{where} reaches element {last}, there are {available}")
    # A dimension of 0 counts as 1, because NumPy checks the other dimensions even then.
    if math.prod(max(n, 1) for n in shape) > max(available, _MAX_REPEATED):
        raise ReadError(f"{where} has more elements than the storage, which has {available}")
    return Tensor(storage, dtype, shape, strides, offset)


def _flagged(metadata: Any) -> bool:
    """Says whether PyTorch would conjugate or negate a tensor when reading it."""
    return type(metadata) is dict and any(value is True for value in metadata.values())


def _rebuild_tensor(args: tuple) -> Any:
    # storage, offset, shape, strides[, requires_grad, hooks[, metadata]]
    if len(args) not in (4, 6, 7) or type(args[0]) is not Storage:
        return NotImplemented
    storage, offset, shape, strides = args[:4]
    if storage.dtype is None:
        return Opaque(f"a tensor of {storage.kind}")
    if _flagged(args[-1]):
        return Opaque("a tensor with a conjugate or negative bit")
    return _make(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v3(args: tuple) -> Any:
    # storage, offset, shape, strides, requires_grad, hooks, dtype[, metadata]
    if len(args) not in (7, 8) or type(args[0]) is not Storage or type(args[6]) is not Global:
        return NotImplemented
    dtype = DTYPES.get(args[6].name.removeprefix("torch."))
    if dtype is None:
        return Opaque(f"a tensor of {args[6].name}")
    if _flagged(args[-1]):
        return Opaque("a tensor with a conjugate or negative bit")
    return _make(args[0], dtype, *args[1:4])


def _first_tensor(args: tuple) -> Any:
    return args[0] if args and type(args[0]) in (Tensor, Opaque) else NotImplemented


def _rebuild_from_type(args: tuple) -> Any:
    # function, class, its arguments, attributes: a tensor with attributes that the user set
    if len(args) != 4 or type(args[0]) is not Global or type(args[2]) is not tuple:
        return NotImplemented
    return _REBUILD.get(args[0].name, lambda _: NotImplemented)(args[2])


def _size(args: tuple) -> Any:
    return args[0] if [type(arg) for arg in args] == [tuple] else NotImplemented


_REBUILD: dict[str, Callable[[tuple], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _first_tensor,
    "torch._utils._rebuild_parameter_with_state": _first_tensor,
}

# The functions of PyTorch that torch.save names, for `unpickle.loads`.
TORCH_CALLS: dict[str, Callable[[tuple], Any]] = {
    **_REBUILD,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
}
