"""Trains on class folders' images packed as shards: the same run as on the folders, and resumed."""

import json
import pathlib
import shutil

import pytest
from ml_collections import ConfigDict

from noah_jax.errors import InputError, UnreachableError
from noah_jax.train import train
from noah_jax.train.__main__ import main
from noah_jax.train.watchdog import RESTARTABLE
from tests.bucket import as_bucket
from tests.shards import write_mixed_shards, write_tables, write_webdataset


def _config(run) -> ConfigDict:
    return ConfigDict(json.loads((pathlib.Path(run) / "config.json").read_text()))


def _results(run) -> list:
    """The final results, and every logged loss."""
    run = pathlib.Path(run)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        json.loads((run / "results.json").read_text()),
        [line["loss"] for line in lines if "loss" in line],
    ]


def _forget_the_second_half(run: pathlib.Path) -> None:
    """Leaves a run of 12 steps as if it had been cut off after its checkpoint of step 6."""
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoints" / "12")


def _stopped_copy(run, config: ConfigDict, target: pathlib.Path) -> None:
    """Copies a run as it was after its checkpoint of step 6, as if of an earlier version."""
    shutil.copytree(run, target, ignore=shutil.ignore_patterns("results.json", "12", "data.json"))
    (target / "config.json").write_text(config.to_json())


@pytest.mark.parametrize("kind", ["wds", pytest.param("hf", marks=pytest.mark.slow)])
def test_a_run_on_folders_goes_on_with_their_shards(kind, tiny_run, class_folders, tmp_path):
    config = _config(tiny_run)
    config.dataset = f"{kind}:{tmp_path / 'shards'}"
    config.data.cache_dir = str(tmp_path / "cache")
    if kind == "wds":
        write_webdataset(tmp_path / "shards", class_folders)
    else:
        write_tables(tmp_path / "shards", class_folders)
    _stopped_copy(tiny_run, config, tmp_path / "run")
    train(config, str(tmp_path / "run"))
    assert _results(tmp_path / "run") == _results(tiny_run)
    if kind == "wds":
        # Images in other shards are other data.
        _forget_the_second_half(tmp_path / "run")
        shutil.rmtree(tmp_path / "shards")
        write_webdataset(tmp_path / "shards", class_folders, shards=3)
        with pytest.raises(InputError, match="the training images are as many, but other files"):
            train(config, str(tmp_path / "run"))


def test_a_bucket_that_does_not_answer_is_no_lasting_error(tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise UnreachableError("gs://bucket/a.tar cannot be downloaded")

    monkeypatch.setattr("noah_jax.train.program.train", fail)
    words = ["--config=quickstart.py", f"--workdir={tmp_path}", "--num_processes=1"]
    assert main(words) == RESTARTABLE
    assert capsys.readouterr().err == "error: gs://bucket/a.tar cannot be downloaded\n"


@pytest.mark.slow
def test_a_run_that_shuffles_within_windows_goes_on_from_a_bucket(
    tiny_run, class_folders, tmp_path, capsys
):
    write_mixed_shards(tmp_path / "bucket", class_folders, shards=10)
    config = _config(tiny_run)
    config.dataset = "mixed"
    config.data.shuffle_window = 3
    config.data.dir = str(tmp_path / "bucket" / "tfds")
    run = tmp_path / "run"
    train(config, str(run))
    assert "shuffled within windows of 3 of 10 shards" in capsys.readouterr().out
    expected = _results(run)
    assert expected != _results(tiny_run)
    _forget_the_second_half(run)
    with as_bucket(tmp_path / "bucket") as bucket:
        # The run's folder keeps the window, whatever this cache would let it choose.
        config.data.shuffle_window = None
        config.data.dir = "gs://bucket/tfds"
        config.data.cache_dir = str(tmp_path / "cache")
        config.data.cache_gb = 2.5e-3  # 9 of the 20 shards, which are padded to 256 KiB
        train(config, str(run))
        assert bucket.reads
    assert _results(run) == expected
    assert "windows of 3 of 10 shards" in capsys.readouterr().out
