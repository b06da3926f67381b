"""`~` in paths: every path of a command line, a configuration and a list expands it."""

import argparse
import importlib
import io
import os

import pytest
from etils import epath

from noah_jax.__main__ import PROGRAMS
from noah_jax.benchmark.__main__ import BENCHMARKS
from noah_jax.benchmark.__main__ import _parser as benchmark_parser
from noah_jax.cli import Parser, load_config
from noah_jax.data.csv_files import CsvSource
from noah_jax.data.sources import data_folder
from noah_jax.errors import MissingError
from noah_jax.inference.loading import load_model
from noah_jax.paths import local_path
from noah_jax.predict.program import _expand
from noah_jax.runs.destination import free_destination

# The metavars that stand for a path, in every program.
PATHS = {"DIR", "FILE", "FILE.png", "PATH", "SRC", "DST", "NPZ", "TRAIN_TAR"}


def _parsers():
    for name in PROGRAMS:
        if name == "benchmark":
            yield from (benchmark_parser(what) for what in BENCHMARKS)
        else:
            yield importlib.import_module(f"noah_jax.{name}.__main__")._parser()


def test_every_path_of_every_program_expands_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    count = 0
    for parser in _parsers():
        for action in parser._actions:
            metavar = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar
            if metavar in PATHS:
                assert str(action.type("~/a")) == "/home/me/a", (parser.prog, action.dest)
                count += 1
    assert count > 20


def test_a_users_home_and_nobodys(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert local_path("~root/a") == os.path.expanduser("~root/a") != "~root/a"
    assert local_path("gs://a/~b") == "gs://a/~b" and local_path("a~b") == "a~b"
    with pytest.raises(argparse.ArgumentTypeError, match="there is no user 'nobody-here'"):
        local_path("~nobody-here/a")
    (tmp_path / "~draft.png").write_text("")
    assert local_path("~draft.png") == "~draft.png"  # a file of this name
    with pytest.raises(argparse.ArgumentTypeError, match="empty"):
        local_path("")


def test_configurations_and_lists(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = (
        "from noah_jax.config import default_config\ndef get_config(v=''): return default_config()"
    )
    (tmp_path / "mine.py").write_text(config)
    parser = Parser("test")
    parser.add_config()
    assert load_config(parser.parse_args(["--config=~/mine.py"])).seed == 0
    (tmp_path / "photos").mkdir()
    for name in ("~/photos", "folder:~/photos"):
        assert str(data_folder(name)) == str(tmp_path / "photos")
    (tmp_path / "train.csv").write_text("image,labels\n~/a.png,red\nb.png,red\n")
    source = CsvSource(epath.Path(tmp_path / "train.csv"))
    assert [path for path, _ in source.files] == [f"{tmp_path}/a.png", f"{tmp_path}/b.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("~/a.png\nb.png\n"))
    assert list(_expand(["-"])) == [f"{tmp_path}/a.png", "b.png"]
    assert str(free_destination("~/new", folder=True)) == f"{tmp_path}/new"
    with pytest.raises(MissingError, match=f"^{tmp_path}/run"):
        load_model("~/run")
