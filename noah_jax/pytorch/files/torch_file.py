"""Reads PyTorch's checkpoint files without PyTorch and without running what is in them."""

import mmap
import os
from typing import Any

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.archive import Archive, map_file
from noah_jax.pytorch.files.legacy_file import is_legacy, read_legacy
from noah_jax.pytorch.files.placeholders import NUMPY_CALLS
from noah_jax.pytorch.files.tensors import TORCH_CALLS, load_storage
from noah_jax.pytorch.files.unpickle import loads

MAX_PICKLE = 64 * 2**20  # bytes; a checkpoint of 1,000 tensors with an optimizer has 0.3 MB

_RESAVE = "load it in a recent PyTorch and torch.save it again"


def read_checkpoint(path: str | os.PathLike) -> Any:
    """Reads the object that `torch.save` wrote to a file, in today's format or that before 1.6.

    Nothing that the file names is imported or called.

    Args:
      path: A local file.

    Returns:
      The saved object, made of plain dicts, lists, tuples, sets, numbers and text. Tensors and
      parameters are `tensors.Tensor`, whose `numpy()` maps the values from the file. NumPy's
      scalars are Python numbers, and an ordered dict is a plain dict. Everything else is a
      `placeholders.Opaque` or `placeholders.Global`. The object may contain itself, as pickles
      allow.

    Raises:
      ReadError: In one line that names the file, the problem and the remedy.
    """
    data = map_file(path)
    if is_legacy(data):
        return read_legacy(path, data)
    if data[:4] not in (b"PK\3\4", b"PK\5\6"):
        raise ReadError(f"{path}: {_not_a_zip(data)}")
    archive = Archive(path, data)
    folder = _folder(archive)
    byte_order = archive.records.get(f"{folder}/byteorder")
    if byte_order is not None and (actual := bytes(archive.read(byte_order)[:16])) != b"little":
        raise ReadError(
            f"{path}: written in byte order {actual!r}, expected b'little'; load it in PyTorch on"
            " a little-endian machine and torch.save it again"
        )
    record = archive.records[f"{folder}/data.pkl"]
    if record.size > MAX_PICKLE:
        raise ReadError(
            f"{path}: record {record.name!r} has {record.size} bytes, expected at most"
            f" {MAX_PICKLE}: the file holds much besides tensors; save the state dict alone"
        )
    pickle = bytes(archive.read(record))
    known_calls = TORCH_CALLS | NUMPY_CALLS
    try:
        return loads(pickle, known_calls, lambda pid: load_storage(archive, folder, pid))
    except ReadError as error:
        raise ReadError(f"{path}: record {record.name!r}: {error}") from None


def _folder(archive: Archive) -> str:
    """Returns the one folder of the archive that torch.save puts everything in."""
    names = archive.records
    folders = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    folders = [folder for folder in folders if "/" not in folder]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise ReadError(
            f"{archive.path}: it is a TorchScript archive; load it with torch.jit.load and"
            " torch.save its state_dict()"
        )
    if len(folders) != 1:
        raise ReadError(
            f"{archive.path}: it is a zip file with {len(folders)} records NAME/data.pkl;"
            " torch.save writes exactly one"
        )
    return folders[0]


def _not_a_zip(data: mmap.mmap) -> str:
    """Says what a file is if it is not a zip file, and what to do."""
    start = data[:512]
    if start[257:262] == b"ustar":
        return f"written before PyTorch 1.6, as a tar file; {_RESAVE}"
    if start.lstrip()[:1] == b"<":
        return "a web page, not a checkpoint: the download failed; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not a checkpoint; run git lfs pull"
    if start.startswith(b"\x1f\x8b"):
        return "compressed with gzip; unpack it first"
    if start.startswith(b"\x80"):
        return f"a pickle, not a file of torch.save; {_RESAVE}"
    return (
        "neither a zip file as torch.save writes it nor safetensors; if it is a checkpoint, it is"
        " corrupt or truncated: copy or download it again"
    )
