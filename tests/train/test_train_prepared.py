"""Trains on a few photographs as class folders and as a prepared TFDS dataset of them."""

import json
import shutil

from noah_jax.prepare.__main__ import main as prepare
from noah_jax.train import train
from tests.helpers import GOLDEN, make_tiny_config


def test_training_on_a_prepared_set_is_training_on_its_folders(tmp_path, capsys):
    folders, prepared = tmp_path / "folders", tmp_path / "prepared"
    for photograph in (GOLDEN / "images").iterdir():
        for split in ("train", "val"):
            folder = folders / split / photograph.stem.split("_")[0]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(photograph, folder)
    words = ["--folder", str(folders), "--name", "my_images", "--data-dir", str(prepared)]
    assert prepare(words) == 0
    assert capsys.readouterr().out == f"{prepared}/my_images/1.0.0 is complete: train 7, val 7\n"
    for workdir, dataset in (("a", f"folder:{folders}"), ("b", "my_images")):
        config = make_tiny_config(dataset)
        config.data.update(dir=str(prepared), crop="random_resized", eval_resize=36)
        config.model.image_size = 32
        config.batch_size, config.epochs, config.log_every = 4, 1.8, 1
        train(config, str(tmp_path / workdir))
        said = capsys.readouterr().out
        assert "7 training and 7 evaluation images of" in said and "3 steps of 4 images" in said
    results, metrics = (
        [(tmp_path / workdir / name).read_text() for workdir in ("a", "b")]
        for name in ("results.json", "metrics.jsonl")
    )
    assert results[0] == results[1] and json.loads(results[0])["examples"] == 7
    losses = [[json.loads(line)["loss"] for line in lines.splitlines()] for lines in metrics]
    assert losses[0] == losses[1] and len(set(losses[0])) == len(losses[0]) == 5
