"""What the machine refuses is one line, whoever ran into it."""

import errno
import importlib
import os
import subprocess
import sys

import pytest

from noah_jax.cli import Parser, run
from noah_jax.errors import WriteError, finished_name, machine_error
from noah_jax.files import make_folder, whole, write_text
from tests.helpers import ROOT


def _end(error):
    def program(parsed):
        raise error

    return run(program, Parser("test"), [])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x", "/a/.b.png.partial-12"), "/a/b.png: No space left on device; "),
        (PermissionError(errno.EACCES, "x", "/a"), "/a: Permission denied; choose a place"),
        (NotADirectoryError(errno.ENOTDIR, "x", "/file/a"), "/file/a: Not a directory; a part"),
        (OSError(errno.EROFS, "x", b"/caf\xe9"), r"/caf\xe9: Read-only file system; it is"),
        (OSError(errno.EIO, "x"), "Input/output error; the disk fails or is gone"),
        (ValueError('writing "a": [OS error 28: No space]'), "No space left on device; free"),
    ],
    ids=str,
)
def test_one_line_says_where_and_what_to_do(error, said, capsys, monkeypatch):
    monkeypatch.delenv("NOAH_TRACEBACK", raising=False)
    assert _end(error) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {said}") and printed.count("\n") == 1
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    assert str(machine_error(wrapped)).startswith(said)


@pytest.mark.parametrize("error", [OSError("a"), FileNotFoundError(errno.ENOENT, "x", "/a")])
def test_other_errors_are_ours(error):
    assert machine_error(error) is None
    with pytest.raises(OSError, match="a"):
        _end(error)


def test_unfinished_files_have_no_name_in_messages(tmp_path):
    assert finished_name("/a/.model.json.partial-7/x") == "/a/model.json/x"
    folder = tmp_path / "file"
    folder.write_text("")
    for write in (lambda: write_text(folder / "b", ""), lambda: make_folder(folder / "b")):
        with pytest.raises(WriteError) as raised:
            write()
        assert "partial" not in str(raised.value) and "is a file" in str(raised.value)


def test_a_disk_that_is_full_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"a cannot be written \(No space left on device\); free"):
        write_text(tmp_path / "a", "text")
    with (
        pytest.raises(WriteError, match="folder cannot be written"),
        whole(tmp_path / "folder") as f,
    ):
        f.mkdir()
        (f / "b").write_text("b")
    assert not list(tmp_path.iterdir())


def test_a_remote_path_without_its_library_names_it(capsys, monkeypatch):
    monkeypatch.delenv("NOAH_TRACEBACK", raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # importing it fails, as where it is missing

    def program(parsed):
        try:
            return len(importlib.import_module("gcsfs").__name__)
        except ImportError as error:  # as fsspec does
            raise ImportError("Please install gcsfs to access Google Storage") from error

    assert run(program, Parser("test"), []) == 1
    said = capsys.readouterr().err
    assert said == "error: gcsfs is not installed; pip install 'gcsfs'\n"


SAVE = """
import resource, sys
from noah_jax.cli import Parser, run
def program(parsed):
    import numpy as np
    import jax.numpy as jnp
    from noah_jax.runs.checkpoints import Checkpoints
    array = jnp.asarray(np.random.default_rng(0).normal(size=100_000))
    state = {"params": {"a": array}, "stats": {"b": array}, "step": jnp.zeros((), int)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(1, state)
    checkpoints.wait()
    return 0
sys.exit(run(program, Parser("test"), []))
"""


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path):
    """Orbax and TensorStore print a traceback for each of their threads and writes."""
    ran = subprocess.run(
        [sys.executable, "-c", SAVE, str(tmp_path / "checkpoints")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1, ran.stderr
    assert ran.stderr.startswith(f"error: no checkpoint can be saved in {tmp_path}/checkpoints: ")
    assert "File too large; raise the limit on the size of files (ulimit -f)" in ran.stderr
    assert not list((tmp_path / "checkpoints").iterdir())
