"""Trains on class folders' images packed as shards: the same run as on the folders, and resumed."""

import json
import pathlib
import shutil

import pytest
from ml_collections import ConfigDict

from noah_jax.errors import InputError
from noah_jax.train import train
from tests.shards import write_webdataset


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


def test_training_on_shards_is_training_on_their_folders(tiny_run, class_folders, tmp_path):
    write_webdataset(tmp_path / "shards", class_folders)
    config = _config(tiny_run)
    config.dataset = f"wds:{tmp_path / 'shards'}"
    config.data.cache_dir = str(tmp_path / "cache")
    run = tmp_path / "run"
    train(config, str(run))
    assert _results(run) == _results(tiny_run)
    _forget_the_second_half(run)
    train(config, str(run))
    assert _results(run) == _results(tiny_run)
    # Images in other shards are other data.
    _forget_the_second_half(run)
    shutil.rmtree(tmp_path / "shards")
    write_webdataset(tmp_path / "shards", class_folders, shards=3)
    with pytest.raises(InputError, match="other data: the training images are as many, but other"):
        train(config, str(run))
