"""COCO from its own files to an evaluation, by the configurations that are published."""

import json
import shutil

import pytest

from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.export.card import model_card
from noah_jax.inference.trained import load_one
from noah_jax.prepare.__main__ import main as prepare
from noah_jax.train.__main__ import main as train
from tests.helpers import ROOT, write_coco

# The published configuration with sizes that the command line cannot change.
SMALL = f"""
import runpy

def get_config(variant):
    config = runpy.run_path("{ROOT}/configs/coco.py")["get_config"](variant)
    config.model.update(stem="small", width=4, depths=(1, 1, 1, 1))
    return config
"""
# The recipe of 40 epochs in two steps of a small network.
QUICK = [
    *("--config.model.name=resnet18", "--config.model.image_size=32"),
    *("--config.batch_size=4", "--config.epochs=1.0", "--config.checkpoint_every=1"),
    *("--config.data.num_threads=1", "--config.data.num_workers=0", "--config.log_every=1"),
    f"--config.compilation_cache={ROOT / '.pytest_cache' / 'jax'}",
]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder in COCO's own layout."""
    root = tmp_path_factory.mktemp("coco")
    write_coco(root, "2014")
    return root


def _train(run, *arguments):
    (run.parent / "small.py").write_text(SMALL)
    config = f"--config={run.parent}/small.py:noah_resnet101_448"
    assert train([config, *QUICK, f"--workdir={run}", *arguments]) == 0
    return json.loads((run / "results.json").read_text())


@pytest.fixture(scope="module")
def run(coco, tmp_path_factory):
    """The folder of a finished run of two steps on what was prepared of the folder."""
    root = tmp_path_factory.mktemp("run")
    assert prepare(["--coco", str(coco), "--data-dir", str(root / "data")]) == 0
    _train(root / "run", f"--config.data.dir={root}/data")
    return root / "run"


def test_two_steps_by_the_recipe(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == 2 and results["examples"] == 6
    assert {"map", "cp", "cr", "cf1", "op", "or", "of1", "of1_top3", "ema_map"} <= results.keys()
    rates = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in rates if "learning_rate" in line]
    # The peak of one cycle lies before the first of so few steps; the last rate is 1e-4 / 250,000.
    assert rates[-1] == pytest.approx(4e-10, rel=1e-3)
    # A resumed run gives the same.
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints/2")
    (copy / "results.json").unlink()
    assert _train(copy, f"--config.data.dir={run.parent}/data") == results


def test_evaluation_of_the_run(run, coco, capsys):
    results = json.loads((run / "results.json").read_text())
    for more in ([], ["--dataset", f"coco:{coco}"]):
        assert evaluate(["--checkpoint", str(run), "--ema", "--json", *more]) == 0
        row = json.loads(capsys.readouterr().out)
        for key in ("map", "cp", "cr", "cf1", "op", "or", "of1", "cf1_top3", "loss"):
            assert row[key] == pytest.approx(results[f"ema_{key}"], rel=1e-5), key
        # Whole images are resized, whatever their shape.
        assert row["preprocessing"]["resize"] == "squash" and row["examples"] == 6
    facts = {"arguments": {}, "platforms": [], "jax_version": "", "difference_from_the_model": 0.0}
    card = model_card(load_one(str(run)), facts)
    assert "resized to 32 x 32 pixels, whatever their shape" in card
    assert "image.resize((32, 32))" in card
