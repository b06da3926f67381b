"""Tensors and storages of PyTorch's files, as arrays that are read when asked for."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.archive import Archive, Record
from noah_jax.pytorch.files.placeholders import Global, Opaque

# PyTorch's dtype -> NumPy's, in the files' byte order.
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
# The classes of storages go by the names of C's types.
_STORAGES = {
    "BFloat16": "bfloat16", "Half": "float16", "Float": "float32", "Double": "float64",
    "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64",
    "Byte": "uint8", "Bool": "bool", "Untyped": "uint8",
}  # fmt: skip

# Tensors that are no strided arrays of values.
_NO_ARRAYS = {
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
}

_MAX_NDIM = 32
# A view that repeats elements (`expand`) may hold this many where its storage has fewer.
_MAX_REPEATED = 2**22


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A record of numbers that tensors look into.

    Attributes:
      dtype: of its elements; `None` where NumPy has no such type.
      numel: number of elements.
      kind: PyTorch's name of its class, for messages.
    """

    archive: Archive
    record: Record
    dtype: np.dtype | None
    numel: int
    kind: str

    def flat(self, dtype: np.dtype) -> np.ndarray:
        """All elements, read-only; made once where they have to be copied from the file.

        Raises:
          ReadError: if the bytes in the file differ from their checksum.
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
      dtype: NumPy's, `ml_dtypes.bfloat16` among them.
      strides, offset: in elements, as PyTorch counts.
    """

    storage: Storage
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def numpy(self) -> np.ndarray:
        """The values, read-only and mapped from the file where that is possible.

        Raises:
          ReadError: if the bytes in the file differ from their checksum.
        """
        if 0 in self.shape:
            return flat_array(b"", self.dtype, 0).reshape(self.shape)
        size = self.dtype.itemsize
        strides = [stride * size for stride in self.strides]
        flat = self.storage.flat(self.dtype)
        return np.ndarray(self.shape, self.dtype, flat, self.offset * size, strides)


def flat_array(buffer: Any, dtype: np.dtype, count: int, start: int = 0) -> np.ndarray:
    """`count` numbers from byte `start` of a buffer on, in place where that is possible."""
    if count == 0:
        array = np.zeros(0, dtype)
    elif dtype == np.bool_:
        # Any byte but 0 means true; as NumPy's bool only 0 and 1 are defined.
        array = np.frombuffer(buffer, np.uint8, count, start) != 0
    else:
        array = np.frombuffer(buffer, dtype, count, start)
        if not array.flags.aligned:
            # PyTorch aligns its records; others need not.
            array = array.copy()
    array.flags.writeable = False
    return array


def load_storage(archive: Archive, folder: str, pid: Any) -> Storage:
    """The storage that a persistent id names: a record `FOLDER/data/KEY`.

    Raises:
      ReadError: if there is none, or it has not the size that the id says.
    """
    if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
        raise ReadError("not the id of a storage")
    _, cls, key, _, numel = pid[:5]
    if type(cls) is not Global or type(key) is not str or not _is_count(numel):
        raise ReadError("not the id of a storage")
    name = f"{folder}/data/{key[:64]}"
    record = archive.records.get(name) if len(key) <= 64 else None
    if record is None:
        raise ReadError(f"record {name!r} expected, the file has none")
    kind = cls.name.rpartition(".")[2]
    dtype = DTYPES.get(_STORAGES.get(kind.removesuffix("Storage"), ""))
    if dtype is not None and record.size != numel * dtype.itemsize:
        raise ReadError(
            f"record {record.name!r} has {record.size} bytes,"
            f" {numel} x {dtype.itemsize} expected for a {kind}"
        )
    return Storage(archive, record, dtype, numel, kind)


def describe(value: Any) -> str:
    """What a value from a file is, in a few words."""
    if type(value) is Global:
        return value.name
    if type(value) is not Opaque:
        return f"a {type(value).__name__}"
    return _NO_ARRAYS.get(value.name, value.name)


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
    # Counting a dimension of 0 as 1: NumPy wants these to fit as well.
    if math.prod(max(n, 1) for n in shape) > max(available, _MAX_REPEATED):
        raise ReadError(f"{where} has more elements than the storage, which has {available}")
    return Tensor(storage, dtype, shape, strides, offset)


def _flagged(metadata: Any) -> bool:
    """Whether a tensor is to be conjugated or negated on reading."""
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
    # function, class, its arguments, attributes: a tensor that has attributes of its own
    if len(args) != 4 or type(args[0]) is not Global or type(args[2]) is not tuple:
        return NotImplemented
    return _PLAIN.get(args[0].name, lambda _: NotImplemented)(args[2])


def _size(args: tuple) -> Any:
    return args[0] if [type(arg) for arg in args] == [tuple] else NotImplemented


_PLAIN: dict[str, Callable[[tuple], Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _first_tensor,
    "torch._utils._rebuild_parameter_with_state": _first_tensor,
}

# What the functions that torch.save names give for their arguments.
TORCH: dict[str, Callable[[tuple], Any]] = {
    **_PLAIN,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
}
