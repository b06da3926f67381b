"""The zip container of PyTorch's files: stored records, mapped into memory.

A parser of its own because records are used in place (`zipfile` copies them), and because
every offset and size has to be held against the file before anything relies on it.
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

_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_DAMAGED = "the file is damaged or cut short; copy or download it again"


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One file of the archive: bytes `start` to `start + size`."""

    name: str
    start: int
    size: int
    crc: int
    stored: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the archive's table of contents."""

    name: str
    flags: int
    method: int
    crc: int
    compressed: int
    size: int
    header: int


def map_file(path: str | os.PathLike) -> mmap.mmap:
    """A file's bytes, read-only, without reading them.

    Raises:
      ReadError: if it cannot be opened, is no regular file or has no bytes.
    """
    try:
        mode = os.stat(path).st_mode
        # Opening a pipe would wait for ever.
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise ReadError(f"{path}: {kind}, a file of weights expected")
        with pathlib.Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ReadError(f"{path}: the file is empty; copy or download it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ReadError(f"{path}: {error.strerror}") from None


class Archive:
    """The records of a zip file by name.

    Args:
      path: for messages.
      data: the file's bytes; kept mapped as long as anything uses them.

    Raises:
      ReadError: if the table of contents is damaged, contradicts itself or the file, or
        names a record twice.
    """

    def __init__(self, path: str | os.PathLike, data: mmap.mmap):
        self.path = path
        self.data = data
        self.records: dict[str, Record] = {}
        # Of `tensors.Storage`, which many tensors may look into.
        self.arrays: dict[tuple, np.ndarray] = {}
        spans = []
        for entry, end_of_records in self._entries():
            if entry.name in self.records:
                raise ReadError(f"{path}: record {entry.name!r} is there twice; {_DAMAGED}")
            record = self._record(entry, end_of_records)
            self.records[entry.name] = record
            spans.append((entry.header, record.start + entry.compressed, entry.name))
        spans.sort()
        for (_, end, name), (start, _, following) in itertools.pairwise(spans):
            if end > start:
                raise ReadError(f"{path}: records {name!r} and {following!r} overlap; {_DAMAGED}")
        # `torch.serialization.set_crc32_options(False)` leaves all checksums 0.
        self._has_checksums = any(record.crc for record in self.records.values())

    def read(self, record: Record) -> memoryview:
        """The bytes of a record in place, verified against its CRC-32.

        Raises:
          ReadError: if they are compressed or differ from the checksum.
        """
        if not record.stored:
            raise ReadError(
                f"{self.path}: record {record.name!r} is compressed or encrypted, PyTorch stores"
                " records as they are; load the file in PyTorch and save it again"
            )
        view = memoryview(self.data)[record.start : record.start + record.size]
        if self._has_checksums and zlib.crc32(view) != record.crc:
            raise ReadError(
                f"{self.path}: record {record.name!r} differs from its checksum; {_DAMAGED}"
            )
        return view

    def _entries(self) -> Iterator[tuple[_Entry, int]]:
        """The table of contents, with the place where the records must end."""
        count, size, offset = self._table()
        if count > MAX_RECORDS:
            raise ReadError(f"{self.path}: {count} records, at most {MAX_RECORDS} expected")
        position, end = offset, offset + size
        for _ in range(count):
            fields = self._unpack(_CENTRAL, b"PK\1\2", position)
            flags, method = fields[3], fields[4]
            crc, compressed, uncompressed = fields[7:10]
            name_size, extra_size, comment_size = fields[10:13]
            name_start = position + _CENTRAL.size
            extra_start = name_start + name_size
            position = extra_start + extra_size + comment_size
            if position > end:
                raise self._damaged("the table of contents does not fit in its place")
            name = self._name(name_start, name_size)
            extra = self.data[extra_start : extra_start + extra_size]
            sizes = _zip64([uncompressed, compressed, fields[16]], extra)
            if sizes is None:
                raise self._damaged(f"record {name!r} lacks its 64-bit sizes")
            uncompressed, compressed, header = sizes
            yield _Entry(name, flags, method, crc, compressed, uncompressed, header), offset
        if position != end:
            raise self._damaged("the table of contents has another size than it says")

    def _table(self) -> tuple[int, int, int]:
        """Number of records, size and offset of the table of contents."""
        end = self._end()
        _, disk, first_disk, _, count, size, offset, _ = self._unpack(_END, b"PK\5\6", end)
        if disk or first_disk:
            raise self._damaged("a part of an archive in several files")
        limit = end
        if count == 0xFFFF or size == 0xFFFFFFFF or offset == 0xFFFFFFFF:
            locator = self._unpack(_LOCATOR64, b"PK\6\7", end - _LOCATOR64.size)
            limit = locator[2]
            fields = self._unpack(_END64, b"PK\6\6", limit)
            count, size, offset = fields[7:10]
        if offset + size > limit:
            raise self._damaged("the table of contents does not lie in the file")
        return count, size, offset

    def _end(self) -> int:
        """Where the last header is: it ends the file but for a comment."""
        first = max(0, len(self.data) - _END.size - 0xFFFF)
        at = len(self.data)
        while (at := self.data.rfind(b"PK\5\6", first, at + 3)) >= 0:
            if at + _END.size <= len(self.data):
                comment = struct.unpack_from("<H", self.data, at + _END.size - 2)[0]
                if at + _END.size + comment == len(self.data):
                    return at
        raise self._damaged("a zip file without its end")

    def _record(self, entry: _Entry, end_of_records: int) -> Record:
        stored = entry.method == 0 and not entry.flags & 1
        if stored and entry.compressed != entry.size:
            raise self._damaged(f"record {entry.name!r} has two sizes")
        header = self._unpack(_LOCAL, b"PK\3\4", entry.header)
        name_size, extra_size = header[9:11]
        name_start = entry.header + _LOCAL.size
        start = name_start + name_size + extra_size
        if start + entry.compressed > end_of_records:
            raise self._damaged(f"record {entry.name!r} does not lie in the file")
        if self._name(name_start, name_size) != entry.name:
            raise self._damaged(f"record {entry.name!r} has two names")
        return Record(entry.name, start, entry.size, entry.crc, stored)

    def _unpack(self, layout: struct.Struct, signature: bytes, offset: int) -> tuple:
        if not 0 <= offset <= len(self.data) - layout.size:
            raise self._damaged("a header outside the file")
        fields = layout.unpack_from(self.data, offset)
        if fields[0] != signature:
            raise self._damaged(f"no header {signature!r} at byte {offset}")
        return fields

    def _name(self, start: int, size: int) -> str:
        try:
            return str(self.data[start : start + size], "utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a record's name is not UTF-8") from None

    def _damaged(self, problem: str) -> ReadError:
        return ReadError(f"{self.path}: {problem}; {_DAMAGED}")


def _zip64(values: list[int], extra: bytes) -> list[int] | None:
    """`values` with those that are too large for 32 bits taken from the extra field."""
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
