"""Reads safetensors files as arrays that are mapped into memory."""

import math
import os

import numpy as np
from safetensors import SafetensorError, safe_open

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.archive import map_file
from noah_jax.pytorch.files.tensors import DTYPES, flat_array

_DTYPES = {
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip


def is_safetensors(path: str | os.PathLike) -> bool:
    """Says whether a file starts with a length and a JSON object of that length."""
    data = map_file(path)
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a file's tensors and metadata.

    The safetensors library checks the header. Its own arrays would be copies, so the arrays are
    made here.

    Returns:
      Read-only arrays by key, mapped from the file, and the metadata.

    Raises:
      ReadError: In one line that names the file and the problem.
    """
    data = map_file(path)
    tensors = {}
    position = 8 + int.from_bytes(data[:8], "little")
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
            # The library has checked that the tensors fill the file in this order without gaps.
            slices = [(key, file.get_slice(key)) for key in file.offset_keys()]
            headers = [(key, item.get_dtype(), item.get_shape()) for key, item in slices]
    except SafetensorError as error:
        # The error may quote the file's text.
        problem = " ".join(str(error).split())[:300]
        raise ReadError(
            f"{path}: {problem}; the file is corrupt or truncated, copy or download it again"
        ) from None
    for key, code, shape in headers:
        if code not in _DTYPES:
            raise ReadError(
                f"{path}: tensor {key!r} has dtype {code}, expected {'/'.join(_DTYPES)}"
            )
        dtype = DTYPES[_DTYPES[code]]
        count = math.prod(shape)
        if len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 2**48:
            raise ReadError(f"{path}: tensor {key!r} has shape {shape}, which no array can have")
        tensors[key] = flat_array(data, dtype, count, position).reshape(shape)
        position += count * dtype.itemsize
    return tensors, metadata
