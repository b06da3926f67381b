"""Reads the zip container of PyTorch's files; records stay mapped and are not copied.

The standard library's `zipfile` copies what it reads. This parser hands out records in place, so
it has to check every offset and size against the file before anything relies on it.
"""

import dataclasses
import itertools
import mmap
import os
import pathlib
import stat
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from noah_jax.errors import ReadError

MAX_RECORDS = 200_000

# Layouts of zip's headers, each with its signature first.
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_CORRUPT = "the file is corrupt or truncated; copy or download it again"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One file of the archive.

    Attributes:
      name: Path inside the archive.
      start: Position of the first byte in the file.
      size: Number of bytes once unpacked.
      crc: CRC-32 that the archive states for the bytes.
      stored: Whether the bytes are neither compressed nor encrypted.
    """

    name: str
    start: int
    size: int
    crc: int
    stored: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the archive's central directory."""

    name: str
    flags: int
    method: int
    crc: int
    compressed_size: int
    size: int
    header_start: int


def map_file(path: str | os.PathLike) -> mmap.mmap:
    """Maps a file into memory, read-only.

    Raises:
      ReadError: If the file cannot be opened, is empty or is not a regular file.
    """
    try:
        mode = os.stat(path).st_mode
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise ReadError(f"{path}: it is {kind}, expected a file of weights")
        with pathlib.Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ReadError(f"{path}: the file is empty; copy or download it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ReadError(f"{path}: {error.strerror}") from None


class Archive:
    """Finds the records of a zip file by their names.

    Args:
      path: Path of the file, for messages.
      data: The file's bytes. They stay mapped while anything uses them.

    Attributes:
      records: The records by name.
      arrays: Arrays that `tensors.Storage` made from records, shared by all tensors that view
        the same storage; filled on demand.

    Raises:
      ReadError: If the central directory is corrupt, contradicts itself or the file, or names a
        record twice.
    """

    def __init__(self, path: str | os.PathLike, data: mmap.mmap):
        self.path = path
        self.data = data
        self.records: dict[str, Record] = {}
        self.arrays: dict[tuple[str, np.dtype], np.ndarray] = {}
        spans = []
        for entry, end_of_records in self._entries():
            if entry.name in self.records:
                raise self._corrupt(f"record {entry.name!r} is there twice")
            record = self._record(entry, end_of_records)
            self.records[entry.name] = record
            spans.append((entry.header_start, record.start + entry.compressed_size, entry.name))
        spans.sort()
        for (_, end, name), (start, _, following) in itertools.pairwise(spans):
            if end > start:
                raise self._corrupt(f"records {name!r} and {following!r} overlap")
        # `torch.serialization.set_crc32_options(False)` leaves all checksums 0.
        self._has_checksums = any(record.crc for record in self.records.values())

    def read(self, record: Record) -> memoryview:
        """Returns a record's bytes in place, after comparing them with their CRC-32.

        Raises:
          ReadError: If the record is compressed or its bytes differ from the checksum.
        """
        if not record.stored:
            raise ReadError(
                f"{self.path}: record {record.name!r} is compressed or encrypted, but PyTorch"
                " stores records as they are; load the file in PyTorch and save it again"
            )
        view = memoryview(self.data)[record.start : record.start + record.size]
        if self._has_checksums and zlib.crc32(view) != record.crc:
            raise self._corrupt(f"record {record.name!r} differs from its checksum")
        return view

    def _entries(self) -> Iterator[tuple[_Entry, int]]:
        """Yields the entries of the central directory, each with the records' upper bound."""
        count, size, offset = self._central_directory()
        if count > MAX_RECORDS:
            raise ReadError(f"{self.path}: {count} records, expected at most {MAX_RECORDS}")
        position, end = offset, offset + size
        for _ in range(count):
            fields = self._unpack(_CENTRAL, b"PK\1\2", position)
            flags, method = fields[3], fields[4]
            crc, compressed_size, uncompressed_size = fields[7:10]
            name_size, extra_size, comment_size = fields[10:13]
            name_start = position + _CENTRAL.size
            extra_start = name_start + name_size
            position = extra_start + extra_size + comment_size
            if position > end:
                raise self._corrupt("an entry runs past the end of the central directory")
            name = self._name(name_start, name_size)
            extra = self.data[extra_start : extra_start + extra_size]
            sizes = _zip64([uncompressed_size, compressed_size, fields[16]], extra)
            if sizes is None:
                raise self._corrupt(f"record {name!r} lacks its 64-bit sizes")
            uncompressed_size, compressed_size, header_start = sizes
            entry = _Entry(
                name, flags, method, crc, compressed_size, uncompressed_size, header_start
            )
            yield entry, offset
        if position != end:
            raise self._corrupt("the central directory has another size than it states")

    def _central_directory(self) -> tuple[int, int, int]:
        """Returns the number of records, and the central directory's size and offset."""
        end = self._end_header()
        _, disk, first_disk, _, count, size, offset, _ = self._unpack(_END, b"PK\5\6", end)
        if disk or first_disk:
            raise self._corrupt("it is one part of an archive that spans several files")
        limit = end
        if count == 0xFFFF or size == 0xFFFFFFFF or offset == 0xFFFFFFFF:
            locator = self._unpack(_LOCATOR64, b"PK\6\7", end - _LOCATOR64.size)
            limit = locator[2]
            fields = self._unpack(_END64, b"PK\6\6", limit)
            count, size, offset = fields[7:10]
        if offset + size > limit:
            raise self._corrupt("the central directory does not lie in the file")
        return count, size, offset

    def _end_header(self) -> int:
        """Returns where the end header starts; only a comment may follow it."""
        first = max(0, len(self.data) - _END.size - 0xFFFF)
        at = len(self.data)
        while (at := self.data.rfind(b"PK\5\6", first, at + 3)) >= 0:
            if at + _END.size <= len(self.data):
                comment = struct.unpack_from("<H", self.data, at + _END.size - 2)[0]
                if at + _END.size + comment == len(self.data):
                    return at
        raise self._corrupt("it is a zip file without its end")

    def _record(self, entry: _Entry, end_of_records: int) -> Record:
        stored = entry.method == 0 and not entry.flags & 1
        if stored and entry.compressed_size != entry.size:
            raise self._corrupt(f"record {entry.name!r} has two sizes")
        header = self._unpack(_LOCAL, b"PK\3\4", entry.header_start)
        name_size, extra_size = header[9:11]
        name_start = entry.header_start + _LOCAL.size
        start = name_start + name_size + extra_size
        if start + entry.compressed_size > end_of_records:
            raise self._corrupt(f"record {entry.name!r} does not lie in the file")
        if self._name(name_start, name_size) != entry.name:
            raise self._corrupt(f"record {entry.name!r} has two names")
        return Record(entry.name, start, entry.size, entry.crc, stored)

    def _unpack(self, layout: struct.Struct, signature: bytes, offset: int) -> tuple:
        if not 0 <= offset <= len(self.data) - layout.size:
            raise self._corrupt("a header lies outside the file")
        fields = layout.unpack_from(self.data, offset)
        if fields[0] != signature:
            raise self._corrupt(f"no header {signature!r} at byte {offset}")
        return fields

    def _name(self, start: int, size: int) -> str:
        try:
            return str(self.data[start : start + size], "utf-8")
        except UnicodeDecodeError:
            raise self._corrupt("the name of a record is not UTF-8") from None

    def _corrupt(self, problem: str) -> ReadError:
        return ReadError(f"{self.path}: {problem}; {_CORRUPT}")


def _zip64(values: list[int], extra: bytes) -> list[int] | None:
    """Replaces values that are too large for 32 bits by those in the extra field.

    Returns:
      `values`, or `None` if the extra field lacks one.
    """
    wide = [i for i, value in enumerate(values) if value == 0xFFFFFFFF]
    position = 0
    while wide and position + 4 <= len(extra):
        tag, size = struct.unpack_from("<2H", extra, position)
        position += 4
        if tag == 1 and min(size, len(extra) - position) >= 8 * len(wide):
            for i in wide:
                values[i] = struct.unpack_from("<Q", extra, position)[0]
                position += 8
            return values
        position += size
    return None if wide else values
