"""Keeps arrays of features on the disk: written by the chunk, checked by the chunk, memory-mapped.

An array is a file of its bytes, `NAME.bin`. Beside it `NAME.sums` has a line with the number and
the SHA-256 of each chunk of rows, which is written once the chunk's bytes are on the disk. So a
process may be killed at any moment: chunks without a line are missing.
"""

import contextlib
import fcntl
import hashlib
import math
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from noah_jax.errors import InputError, WriteError, machine_advice

_DIGITS = hashlib.sha256().digest_size * 2


class CachedArray:
    """An array `[rows, *shape]` in a file, in chunks of rows.

    Args:
      folder: The folder of the file, which exists.
      name: Name of the file, without a suffix.
      shape: Shape of the array.
      dtype: Its dtype.
      chunk_rows: Rows of a chunk; the last one may have fewer.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        name: str,
        shape: tuple[int, ...],
        dtype: np.typing.DTypeLike,
        chunk_rows: int,
    ):
        self.name = name
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._chunk_rows = chunk_rows
        self._path = folder / f"{name}.bin"
        self._sums = folder / f"{name}.sums"

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.shape[0] // self._chunk_rows)

    def rows(self, chunk: int) -> range:
        """Returns the rows of a chunk."""
        first = chunk * self._chunk_rows
        return range(first, min(first + self._chunk_rows, self.shape[0]))

    def missing(self) -> list[int]:
        """Returns the chunks that have not been written."""
        written = self._read_sums()
        return [chunk for chunk in range(self.num_chunks) if chunk not in written]

    def corrupt(self) -> list[int]:
        """Reads every written chunk; returns those whose bytes are not what was written."""
        sums = sorted(self._read_sums().items())
        if not sums:
            return []
        if not self._path.exists():
            return [chunk for chunk, _ in sums]
        with self._path.open("rb") as file:
            return [chunk for chunk, known in sums if self._checksum(file.fileno(), chunk) != known]

    def write(self, chunk: int, values: np.ndarray) -> None:
        """Writes a chunk, `[rows, *shape]`; it is on the disk when this returns.

        Raises:
          WriteError: If it cannot be written, such as on a full disk.
        """
        data = np.ascontiguousarray(values, self.dtype).view(np.uint8).reshape(-1).data
        with self._writing():
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            with os.fdopen(descriptor, "r+b") as file:
                file.seek(self._offset(chunk))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with self._sums.open("a") as sums:
                # A line that a killed process left unfinished must not be joined.
                sums.write(f"\n{chunk} {hashlib.sha256(data).hexdigest()}\n")
                sums.flush()
                os.fsync(sums.fileno())

    def read(self) -> np.ndarray:
        """Returns the array, memory-mapped; all chunks must have been written."""
        return np.memmap(self._path, self.dtype, "r", shape=self.shape)

    def _offset(self, chunk: int) -> int:
        return self.rows(chunk).start * math.prod(self.shape[1:]) * self.dtype.itemsize

    def _checksum(self, descriptor: int, chunk: int) -> str:
        size = self._offset(chunk + 1) - self._offset(chunk)
        size = min(size, self.nbytes - self._offset(chunk))
        return hashlib.sha256(os.pread(descriptor, size, self._offset(chunk))).hexdigest()

    def _read_sums(self) -> dict[int, str]:
        """Returns the checksums by chunk; the last line of a chunk counts."""
        if not self._sums.exists():
            return {}
        sums = {}
        for line in self._sums.read_bytes().decode("ascii", "replace").splitlines():
            chunk, _, checksum = line.partition(" ")
            if chunk.isdigit() and int(chunk) < self.num_chunks and len(checksum) == _DIGITS:
                sums[int(chunk)] = checksum
        return sums

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"{self._path} cannot be written ({error.strerror}); {machine_advice(error.errno)},"
                " and the same command goes on"
            ) from error


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from writing into a folder meanwhile.

    Raises:
      InputError: If another process does.
    """
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{folder} is in use by another process; wait for it or choose another --cache"
            ) from error
        yield
