"""The zip container: every problem with a file is one line."""

import os
import pathlib
import struct
import warnings
import zipfile

import numpy as np
import pytest

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.torch_file import read_checkpoint
from tests.pytorch.files import torch_bytes as tb


def _check_refused(path: pathlib.Path, problem: str) -> None:
    with pytest.raises(ReadError) as raised:
        tree = read_checkpoint(path)
        tree["weight"].numpy()
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and message.count(str(path)) == 1
    assert "\n" not in message and problem in message, message


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "file.pth"


def _edit(path: pathlib.Path, offset: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(new)] = new
    path.write_bytes(data)


def test_records_at_any_byte_are_read(path):
    """PyTorch aligns its records, other programs do not."""
    for padding in range(8):
        tb.write(path, records={"byteorder": b"little", "x" * (padding + 1): b""})
        array = read_checkpoint(path)["weight"].numpy()
        np.testing.assert_array_equal(array, np.arange(6.0).reshape(2, 3))
        assert array.flags.aligned and not array.flags.writeable and array.dtype == np.float32


def test_folders_missing_files_pipes_and_empty_files(tmp_path, path):
    _check_refused(tmp_path, "a folder")
    _check_refused(path, "No such file")
    path.write_bytes(b"")
    _check_refused(path, "empty")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    _check_refused(pipe, "not a regular file")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x80\x04N.", "a pickle"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "before PyTorch 1.6"),
        (b"storages" + bytes(249) + b"ustar\x0000", "before PyTorch 1.6"),
        (b"\x93NUMPY", "neither a zip file"),
        (b"PK\3\4", "a zip file without its end"),
    ],
    ids=["html", "lfs", "gzip", "pickle", "legacy", "tar", "npy", "stub"],
)
def test_other_files_are_named(path, content, problem):
    path.write_bytes(content)
    _check_refused(path, problem)


def test_a_file_cut_anywhere_is_refused(path):
    whole = tb.write(path).read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ReadError):
            read_checkpoint(path)


def test_every_changed_bit_is_noticed_or_harmless(path):
    whole = tb.write(path).read_bytes()
    expected = np.arange(6.0).reshape(2, 3)
    refused = 0
    for bit in range(0, 8 * len(whole), 3):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            array = read_checkpoint(path)["weight"].numpy()
        except ReadError:
            refused += 1
        else:
            np.testing.assert_array_equal(array, expected)
    # The rest are fields without meaning here: dates, versions, attributes.
    assert refused > 8 * len(whole) / 3 * 0.75


def test_a_wrong_checksum(path):
    whole = tb.write(path).read_bytes()
    _edit(path, whole.index(tb.SIX_FLOATS) + 1, b"\x77")
    _check_refused(path, "record 'archive/data/0' differs from its checksum")


def test_other_zip_files(tmp_path, path):
    np.savez(tmp_path / "arrays.npz", a=np.zeros(2))
    _check_refused(tmp_path / "arrays.npz", "0 records NAME/data.pkl")
    tb.write(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"")
    _check_refused(path, "2 records NAME/data.pkl")
    with zipfile.ZipFile(path, "w"):
        pass
    _check_refused(path, "0 records NAME/data.pkl")


def test_compressed_records(path):
    bomb = {"data/0": bytes(1 << 22)}
    weight = tb.tensor((1 << 20,), (1,), 0, tb.storage("0", 1 << 20))
    tb.write(path, weight, bomb, zipfile.ZIP_DEFLATED)
    _check_refused(path, "compressed")


def test_a_record_named_twice(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tb.write(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data/0", b"x")
    _check_refused(path, "'archive/data/0' is there twice")


def test_names_that_leave_the_folder_name_nothing(path, tmp_path):
    (tmp_path / "secret").write_bytes(tb.SIX_FLOATS)
    for key in ("../../secret", str(tmp_path / "secret"), "0\0", "", "x" * 1000):
        tb.write(path, tb.tensor(where=tb.storage(key)), {"../secret": tb.SIX_FLOATS})
        _check_refused(path, "which the file lacks")


def _central(data: bytes, name: bytes) -> int:
    """Position of a record's entry in the central directory."""
    return data.rindex(name) - 46


def test_records_that_overlap_or_lie_outside(path):
    data = tb.write(path).read_bytes()
    line = _central(data, b"archive/data/0")
    for size, problem in ((2**31, "does not lie in the file"), (2**32 - 1, "64-bit sizes")):
        path.write_bytes(data)
        _edit(path, line + 20, struct.pack("<2I", size, size))
        _check_refused(path, problem)
    path.write_bytes(data)
    _edit(path, line + 24, struct.pack("<I", 23))
    _check_refused(path, "two sizes")
    path.write_bytes(data)
    first = _central(data, b"archive/byteorder")
    _edit(path, first + 20, struct.pack("<2I", 40, 40))
    _check_refused(path, "overlap")
    path.write_bytes(data)
    _edit(path, line + 42, struct.pack("<I", 2**31))
    _check_refused(path, "a header lies outside the file")
    path.write_bytes(data)
    _edit(path, line + 42, struct.pack("<I", 0))
    _check_refused(path, "has two names")


def test_a_wrong_end(path):
    data = tb.write(path).read_bytes()
    end = len(data) - 22
    for offset, value, problem in (
        (10, struct.pack("<H", 60_000), "a header lies outside the file"),
        (10, struct.pack("<H", 2), "has another size"),
        (16, struct.pack("<I", 2**31), "does not lie in the file"),
        (10, b"\xff\xff", "no header b'PK\\x06\\x07'"),
        (4, b"\1\0", "several files"),
        (20, b"\1\0", "without its end"),
    ):
        path.write_bytes(data)
        _edit(path, end + offset, value)
        _check_refused(path, problem)


def test_64_bit_sizes_and_a_comment(path):
    """Files beyond 4 GB have such headers."""
    data = tb.write(path).read_bytes()
    end = len(data) - 22
    count, size, offset = struct.unpack_from("<HII", data, end + 10)
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    wide = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 4)
    path.write_bytes(data[:end] + end64 + locator + wide + b"note")
    array = read_checkpoint(path)["weight"].numpy()
    np.testing.assert_array_equal(array, np.arange(6.0).reshape(2, 3))


def test_64_bit_sizes_of_a_record(path):
    data = tb.write(path).read_bytes()
    end = len(data) - 22
    line = _central(data, b"archive/data/0")
    # The last entry of the directory; its sizes and place move into a field behind the name.
    assert line + 46 + len("archive/data/0") == end
    header = struct.unpack_from("<I", data, line + 42)[0]
    for extra in (struct.pack("<2H3Q", 1, 24, 24, 24, header), struct.pack("<2H2Q", 1, 16, 24, 24)):
        edited = bytearray(data[:end] + b"\7\0\0\0" + extra + data[end:])
        struct.pack_into("<2I", edited, line + 20, 2**32 - 1, 2**32 - 1)
        struct.pack_into("<I", edited, line + 42, 2**32 - 1)
        struct.pack_into("<H", edited, line + 30, 4 + len(extra))
        place = len(edited) - 22 + 12
        size = struct.unpack_from("<I", edited, place)[0]
        struct.pack_into("<I", edited, place, size + 4 + len(extra))
        path.write_bytes(edited)
        if len(extra) == 28:
            np.testing.assert_array_equal(read_checkpoint(path)["weight"].numpy()[1], [3, 4, 5])
        else:
            _check_refused(path, "lacks its 64-bit sizes")
