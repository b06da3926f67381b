"""Trains on a few photographs as class folders and as a prepared TFDS dataset of them."""

import json
import os
import shutil
import subprocess
import sys

from tests.helpers import GOLDEN, ROOT


def _run(*command) -> str:
    """What a program prints, started as a user starts it."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def test_training_on_a_prepared_set_is_training_on_its_folders(tmp_path):
    folders, prepared = tmp_path / "folders", tmp_path / "prepared"
    for photograph in (GOLDEN / "images").iterdir():
        for split in ("train", "val"):
            folder = folders / split / photograph.stem.split("_")[0]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(photograph, folder)
    script = "scripts/prepare_imagenet.py"
    said = _run(script, "--folder", folders, "--name", "my_images", "--data-dir", prepared)
    assert said == f"{prepared}/my_images/1.0.0 is complete: train 7, val 7\n"
    for workdir, *data in (
        (tmp_path / "a", f"--config.dataset=folder:{folders}"),
        (tmp_path / "b", "--config.dataset=my_images", f"--config.data.dir={prepared}"),
    ):
        said = _run(
            *["-m", "noah_jax.train", "--config", "configs/resnet.py:noah_resnet18"],
            *["--config.model.image_size=32", "--config.data.eval_resize=36"],
            *["--config.batch_size=4", "--config.model.batch_norm_group=4"],
            *["--config.epochs=1.8", "--config.optim.learning_rate=0.01", "--config.log_every=1"],
            f"--config.compilation_cache={ROOT / '.pytest_cache' / 'jax'}",
            *["--workdir", workdir, *data],
        )
        assert "7 training and 7 evaluation images of" in said and "3 steps of 4 images" in said
    results, metrics = (
        [(tmp_path / workdir / name).read_text() for workdir in ("a", "b")]
        for name in ("results.json", "metrics.jsonl")
    )
    assert results[0] == results[1] and json.loads(results[0])["examples"] == 7
    losses = [[json.loads(line)["loss"] for line in lines.splitlines()] for lines in metrics]
    assert losses[0] == losses[1] and len(set(losses[0])) == len(losses[0]) == 5
