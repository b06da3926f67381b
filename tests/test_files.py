"""Files and folders that appear whole or not at all."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from noah_jax.errors import InputError, WriteError
from noah_jax.files import copy_files, is_remote, recover, whole, write_bytes, write_text

# Patched rather than registered with fsspec, because epath caches what it finds there.
BACKEND = "etils.epath.backend._FileSystemSpecBackend._get_filesystem"


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def bucket(monkeypatch) -> MemoryFileSystem:
    """What fsspec takes for Google's buckets; `written` lists the paths of written files."""
    written: list[str] = []

    class Bucket(MemoryFileSystem):
        store, pseudo_dirs, cachable = {}, [""], False

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("gs://").strip("/")

        def _open(self, path, mode="rb", **kwargs):
            if mode != "rb":
                written.append(path)
            return super()._open(path, mode, **kwargs)

    files = Bucket()
    files.written = written
    monkeypatch.setattr(BACKEND, lambda self, name: files)
    return files


def test_remote_paths_are_known_by_their_scheme():
    assert is_remote("gs://bucket/a") and not is_remote(pathlib.Path("/a/b"))


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path):
    write_text(tmp_path / "a", "old")
    write_text(tmp_path / "a", "new ü")
    write_bytes(str(tmp_path / "b"), b"\0")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "new ü"
    assert _names(tmp_path) == ["a", "b"]


def test_an_error_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a", "old")
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "old" and _names(tmp_path) == ["a"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_files_is_replaced_only_on_request(tmp_path, overwrite):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("")

    def replace():
        with whole(target, overwrite=overwrite) as partial:
            partial.mkdir()
            (partial / "new").write_text("")

    if overwrite:
        replace()
    else:
        with pytest.raises(WriteError, match=r"folder cannot be written \(.*; something else was"):
            replace()
    assert _names(target) == ["new" if overwrite else "old"]
    assert _names(tmp_path) == ["folder"]


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with whole(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "new").write_text("")
    assert _names(tmp_path / "folder") == ["new"]


def test_what_killed_writers_left_is_mended(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, alive = process.pid, os.getppid()
    for kind, pid in (("partial", dead), ("replaced", dead), ("partial", alive)):
        (tmp_path / f".folder.{kind}-{pid}").mkdir()
        (tmp_path / f".folder.{kind}-{pid}" / kind).write_text("")
    (tmp_path / ".folder.partial-x").write_text("")
    others = [".folder.partial-x", f".folder.partial-{alive}"]
    # Killed between its two renames: the old folder comes back.
    assert recover(tmp_path / "folder")
    assert _names(tmp_path) == sorted([*others, "folder"])
    assert _names(tmp_path / "folder") == ["replaced"]
    # Killed after them: the new folder stays.
    (tmp_path / f".folder.replaced-{dead}").mkdir()
    assert not recover(tmp_path / "folder")
    assert _names(tmp_path) == sorted([*others, "folder"])


def test_errors_say_which_path_why_and_what_to_do(tmp_path):
    with pytest.raises(WriteError) as missing:
        write_text(tmp_path / "none" / "a", "")
    assert str(missing.value) == (
        f"{tmp_path}/none/a cannot be written (No such file or directory); make the folder above"
        " it first or choose another place"
    )
    full = pytest.raises(WriteError, match=r"No space left on device\); free space")
    with full, whole(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="Not a directory"):
        write_text(tmp_path / "file" / "a", "")


def test_errors_of_what_the_body_reads_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as missing, whole(tmp_path / "a"):
        (tmp_path / "source").read_text()
    assert not isinstance(missing.value, WriteError)
    with pytest.raises(InputError, match="mine"), whole(tmp_path / "a"):
        raise InputError("mine")


def test_a_remote_folder_gets_its_last_file_last(tmp_path, bucket):
    with whole("gs://bucket/a/folder", last="model.json") as partial:
        (partial / "weights").mkdir(parents=True)
        (partial / "model.json").write_text("{}")
        (partial / "weights" / "x").write_bytes(b"123")
    assert bucket.written == ["/bucket/a/folder/weights/x", "/bucket/a/folder/model.json"]
    assert bucket.cat_file("gs://bucket/a/folder/weights/x") == b"123"
    write_text("gs://bucket/text", "words")
    assert bucket.cat_file("gs://bucket/text") == b"words"


def test_nothing_is_sent_after_an_error(bucket):
    with pytest.raises(ZeroDivisionError), whole("gs://bucket/a") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert bucket.written == []


def test_remote_errors_say_what_is_needed(monkeypatch):
    def no_library(self, name):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(BACKEND, no_library)
    with pytest.raises(WriteError, match=r"gs://bucket/a cannot .* pip install gcsfs"):
        write_text("gs://bucket/a", "")


def test_copying_a_folder(tmp_path):
    for name in ("a", "sub/b"):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    copy_files(tmp_path / "from", tmp_path / "deep" / "to")
    assert (tmp_path / "deep/to/a").read_text() == "a"
    assert (tmp_path / "deep/to/sub/b").read_text() == "sub/b"
