"""The cache of features: chunks, checksums, kills and full disks."""

import errno
import io
import os
import pathlib

import numpy as np
import pytest

from noah_jax.errors import InputError, WriteError
from noah_jax.probe.cache import CachedArray, locked

VALUES = np.random.RandomState(0).standard_normal((10, 3, 2)).astype(np.float16)


def _array(folder: pathlib.Path) -> CachedArray:
    return CachedArray(folder, "map", VALUES.shape, np.float16, chunk_rows=4)


def _write(array: CachedArray, *chunks: int) -> None:
    for chunk in chunks:
        array.write(chunk, VALUES[array.rows(chunk)])


def test_what_is_written_is_read(tmp_path):
    array = _array(tmp_path)
    assert array.nbytes == VALUES.nbytes
    assert [array.rows(chunk) for chunk in range(3)] == [range(4), range(4, 8), range(8, 10)]
    assert (array.missing(), array.corrupt()) == ([0, 1, 2], [])
    _write(array, 2, 0)
    assert (array.missing(), array.corrupt()) == ([1], [])
    _write(array, 1)
    again = _array(tmp_path)
    assert (again.missing(), again.corrupt()) == ([], [])
    read = again.read()
    assert isinstance(read, np.memmap) and not read.flags.writeable
    np.testing.assert_array_equal(read, VALUES)


@pytest.mark.parametrize("byte", [0, 47, 48, 119])
def test_a_single_bit_makes_its_chunk_corrupt(tmp_path, byte):
    array = _array(tmp_path)
    _write(array, 0, 1, 2)
    path = tmp_path / "map.bin"
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    assert array.corrupt() == [byte // 48]
    _write(array, byte // 48)
    assert array.corrupt() == []


def test_a_lost_or_short_file_is_corrupt(tmp_path):
    array = _array(tmp_path)
    _write(array, 0, 1, 2)
    path = tmp_path / "map.bin"
    path.write_bytes(path.read_bytes()[:100])
    assert array.corrupt() == [2]
    path.unlink()
    assert array.corrupt() == [0, 1, 2]


def test_a_line_that_a_kill_cut_off_does_not_count(tmp_path):
    array = _array(tmp_path)
    _write(array, 0, 1)
    sums = tmp_path / "map.sums"
    sums.write_text(sums.read_text()[:-20])
    assert (array.missing(), array.corrupt()) == ([1, 2], [])
    _write(array, 1, 2)
    assert (array.missing(), array.corrupt()) == ([], [])
    sums.write_bytes(sums.read_bytes() + b"\n7 " + b"0" * 64 + b"\n\xff 0\n")
    assert (array.missing(), array.corrupt()) == ([], [])


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdopen", lambda descriptor, mode: Full(descriptor, "r+"))
    array = _array(tmp_path)
    with pytest.raises(WriteError, match=r"No space left on device.*free space.*goes on") as error:
        _write(array, 0)
    assert "\n" not in str(error.value)
    assert array.missing() == [0, 1, 2]


def test_one_process_at_a_time(tmp_path):
    in_use = pytest.raises(InputError, match="in use by another process")
    with locked(tmp_path), in_use, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
