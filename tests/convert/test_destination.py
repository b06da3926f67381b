"""What a conversion replaces, and what is there after it is killed."""

import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
from typing import ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import load, load_file

from noah_jax import load_model
from noah_jax.convert import program
from noah_jax.convert.__main__ import main
from noah_jax.runs import model_folder
from tests.pytorch.files import torch_files as files

CLASSES = (5, 6)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[pathlib.Path]:
    """Small NOAH ResNets that differ in their number of classes."""
    folder = tmp_path_factory.mktemp("sources")
    states = [files.golden_state("noah_resnet18", width=4, num_classes=n) for n in CLASSES]
    return [files.write(folder / f"{i}.pth", x, "bare", "") for i, x in enumerate(states)]


def _error(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def _classes(folder) -> int:
    return load_model(str(folder))[0].num_classes


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_overwriting_a_folder(sources, tmp_path, capsys):
    folder = tmp_path / "folder"
    for source, classes in zip(sources, CLASSES, strict=True):
        assert main([str(source), str(folder), "--overwrite"]) == 0
        assert _classes(folder) == classes
    assert "or give --overwrite" in _error(capsys, sources[0], folder)
    (tmp_path / "link").symlink_to(folder)
    assert main([str(sources[0]), str(tmp_path / "link"), "--overwrite"]) == 0
    assert _classes(folder) == CLASSES[0] and (tmp_path / "link").is_symlink()
    # A dry run and a failure leave the old folder.
    assert main([str(sources[1]), str(folder), "--overwrite", "--dry-run"]) == 0
    _error(capsys, sources[1], folder, "--overwrite", "--set", "num_classes=7")
    assert _classes(folder) == CLASSES[0] and _names(tmp_path) == ["folder", "link"]


def test_a_failure_while_writing_leaves_the_old_one(sources, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "folder"
    assert main([str(sources[0]), str(folder)]) == 0

    def fail(directory, tree):
        directory.mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(model_folder, "save_model", fail)
    assert "No space left" in _error(capsys, sources[1], folder, "--overwrite")
    assert _classes(folder) == CLASSES[0] and _names(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        ({"mine": ""}, "holds no model.json"),
        ({"model.json": "{"}, "holds a model.json that cannot be read"),
        ({"model.json": '{"name": "resnet18", "arguments": {}}'}, "holds a training run"),
        ({"model.json": '{"source": {}}', "config.json": "{}"}, "holds a training run"),
        ({"model.json": '{"source": {}}', "mine": ""}, "holds other things too (mine)"),
    ],
)
def test_what_others_wrote_is_not_replaced(contents, problem, sources, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in contents.items():
        (folder / name).write_text(text)
    said = _error(capsys, sources[0], folder, "--overwrite")
    assert problem in said and "choose another destination or remove it yourself" in said
    assert "is a file" in _error(capsys, sources[0], folder / next(iter(contents)), "--overwrite")
    assert {path.name: path.read_text() for path in folder.iterdir()} == contents


def test_overwriting_a_file(sources, tmp_path, capsys):
    folder, out = tmp_path / "folder", tmp_path / "out.safetensors"
    assert main([str(sources[0]), str(folder)]) == 0
    out.write_text("old")
    assert "exists already" in _error(capsys, "--to-torch", folder, out)
    assert main(["--to-torch", str(folder), str(out), "--overwrite"]) == 0
    assert "conv1.weight" in load_file(out)
    (tmp_path / "x.safetensors").mkdir()
    said = _error(capsys, "--to-torch", folder, tmp_path / "x.safetensors", "--overwrite")
    assert "is a folder, expected a file" in said


def test_leftovers_of_killed_conversions(sources, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead, alive = process.pid, os.getppid()
    for pid in (dead, os.getpid(), alive):
        (tmp_path / f".folder.partial-{pid}").mkdir()
        (tmp_path / f".folder.partial-{pid}" / "half").write_text("")
    others = [".folder.partial-x", ".folder2.partial-1", f".folder.partial-{alive}"]
    (tmp_path / others[0]).write_text("")
    (tmp_path / others[1]).write_text("")
    assert main([str(sources[0]), str(tmp_path / "folder")]) == 0
    assert _names(tmp_path) == sorted([*others, "folder"])


class _Bucket(MemoryFileSystem):
    """A file system in memory that stands in for Google's buckets."""

    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    written: ClassVar[list] = []

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")

    def _open(self, path, mode="rb", **kwargs):
        if mode != "rb":
            self.written.append(path)
        return super()._open(path, mode, **kwargs)


def test_a_bucket(sources, tmp_path, capsys, monkeypatch):
    bucket = _Bucket()
    # fsspec's registry would not do, because epath caches what it finds there.
    backend = "etils.epath.backend._FileSystemSpecBackend._get_filesystem"
    monkeypatch.setattr(backend, lambda self, name: bucket)
    bucket.mkdir("gs://bucket")
    assert main([str(sources[0]), "gs://bucket/a/folder"]) == 0
    # The file that makes it a model's folder comes last.
    assert _Bucket.written[-1] == "/bucket/a/folder/model.json"
    for path in _Bucket.written:
        copy = tmp_path / path.removeprefix("/bucket/a/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(bucket.cat_file(path))
    assert _classes(tmp_path / "folder") == CLASSES[0]
    said = _error(capsys, sources[0], "gs://bucket/a/folder", "--overwrite")
    assert "exists already" in said and "--overwrite is for local ones" in said
    out = "gs://bucket/out.safetensors"
    assert main(["--to-torch", str(tmp_path / "folder"), out]) == 0
    assert "conv1.weight" in load(bucket.cat_file(out))
    # Orbax reads buckets by itself, so the weights come from the copy. The counters of batches
    # are in model.json, which must be read from the bucket.
    monkeypatch.setattr(program, "load_model", lambda _: load_model(str(tmp_path / "folder")))
    out = tmp_path / "out.safetensors"
    assert main(["--to-torch", "gs://bucket/a/folder", str(out)]) == 0
    assert load_file(out)["bn1.num_batches_tracked"] == 100


def test_a_bucket_without_its_library(sources, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    said = _error(capsys, sources[0], "gs://bucket/folder")
    assert "Please install gcsfs" in said and "pip install gcsfs" in said


class _Killer:
    """Converts into a folder in another process, kills it, and looks what is there."""

    def __init__(self, folder: pathlib.Path, sources: list[pathlib.Path]):
        self._folder = folder
        self._sources = itertools.cycle(zip(sources, CLASSES, strict=True))
        self._process = subprocess.Popen(
            [sys.executable, pathlib.Path(__file__).parent / "killed.py", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        self._there: int | None = None
        self.places: list[pathlib.Path] = []

    def convert(self, when: str) -> bool:
        """Converts once. What is there afterwards must be whole, the old folder or the new one.

        Returns whether the conversion was killed.
        """
        source, new = next(self._sources)
        self._process.stdin.write(f"{source} {when}\n")
        self._process.stdin.flush()
        end = self._process.stdout.readline().strip()
        self.places = [self._folder] if self._folder.exists() else []
        self.places += self._folder.parent.glob(f".{self._folder.name}.replaced-*")
        found = _classes(self.places[0]) if self.places else None
        assert found in ([self._there, new] if end == "killed" else [new]), (when, found)
        self._there = found
        return end == "killed"

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait() == 0
        self._process.stdout.close()


def test_a_kill_leaves_the_old_or_the_new(sources, tmp_path):
    killer = _Killer(tmp_path / "folder", sources)
    times = [f"{random.uniform(0.02, 0.5):.3f}" for _ in range(2)]
    print("killed after", times)
    # The first conversions make the folder, the later ones replace it.
    for when in (times[0], "8", "never", "swap1", "swap2", "24", times[1]):
        killed = killer.convert(when)
        assert killed or when in times or when == "never", when
        if when == "swap2":
            # At this moment neither folder has the name.
            assert [place.name.rpartition("-")[0] for place in killer.places] == [
                ".folder.replaced"
            ]
    killer.convert("never")
    killer.close()
    # Nothing is left of the conversions that were killed.
    assert _names(tmp_path) == ["folder"]
    assert _names(tmp_path / "folder") == ["checkpoints", "model.json"]
    assert json.loads((tmp_path / "folder" / "model.json").read_text())["source"]


@pytest.mark.slow
def test_a_kill_at_every_change_of_a_name(sources, tmp_path):
    killer = _Killer(tmp_path / "folder", sources)
    count = next(n for n in itertools.count(1) if not killer.convert(str(n)))
    over = next(n for n in itertools.count(1) if not killer.convert(str(n)))
    assert count > 10 and over > 10
    for _ in range(40):
        killer.convert(f"{random.uniform(0.02, 0.6):.3f}")
    killer.convert("never")
    killer.close()
    assert _names(tmp_path) == ["folder"]
