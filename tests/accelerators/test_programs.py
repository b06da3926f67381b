"""The programs on a GPU or a TPU: training, evaluate, predict, explain, export, timing."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from noah_jax import load_model
from noah_jax.benchmark.__main__ import main as benchmark
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.explain.__main__ import main as explain
from noah_jax.export.__main__ import main as export
from noah_jax.predict.__main__ import main as predict
from tests.helpers import ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.tpu]

# Trains a small model in bfloat16: images, run folder, model.
_TRAIN = """
import sys
from noah_jax.train import train
from tests.helpers import make_tiny_config
images, workdir, name = sys.argv[1:]
config = make_tiny_config(images)
config.model.name, config.model.dtype = name, "bfloat16"
if "resnet" not in name:
    del config.model.stem
    config.model.batch_norm_group = None
    config.model.image_size, config.model.width = 32, 16
    config.model.update(num_heads=2, depth=2)
train(config, workdir)
"""


def _train(images, workdir, name):
    # By default XLA takes kernels whose sums have no fixed order.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    command = [sys.executable, "-c", _TRAIN, images, str(workdir), name]
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True)


def _weights(workdir):
    _, params, stats = load_model(str(workdir))
    return [np.asarray(x) for x in jax.tree.leaves((params, stats))]


@pytest.mark.parametrize("name", ["noah_resnet18", "noah_deit_tiny_patch16_224"])
def test_resuming_is_exact(name, class_folders, tmp_path, accelerator):
    if accelerator == "tpu":
        pytest.skip("this process holds the TPU, and another one would have to train on it")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    _train(class_folders, whole, name)
    shutil.copytree(whole, resumed)
    (resumed / "results.json").unlink()
    for step in ("9", "12"):
        shutil.rmtree(resumed / "checkpoints" / step)
    _train(class_folders, resumed, name)
    for one, other in zip(_weights(resumed), _weights(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_evaluate_predict_and_explain(tiny_run, class_folders, tmp_path, capsys):
    images = f"{class_folders}/val"
    report = tmp_path / "report"
    assert evaluate(["--checkpoint", tiny_run, "--report", str(report)]) == 0
    results = json.loads((pathlib.Path(tiny_run) / "results.json").read_text())
    assert f"{results['top1']:.2f}" in capsys.readouterr().out
    assert predict([images, "--checkpoint", tiny_run, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 21
    page = tmp_path / "page"
    arguments = ["--checkpoint", tiny_run, "--image", f"{images}/ant/00.png", "--classes", "top1"]
    assert explain([*arguments, "--output", str(page)]) == 0
    assert (page / "index.html").exists()


def test_logits_are_the_cpus(tiny_run):
    model, params, stats = load_model(tiny_run)
    images = np.random.RandomState(0).randint(0, 256, (5, 28, 28, 3), np.uint8)
    with jax.default_matmul_precision("highest"):
        here = np.asarray(model.predict(params, stats, images))
        cpu = jax.devices("cpu")[0]
        arguments = jax.device_put((params, stats, images), cpu)
        there = np.asarray(jax.jit(model.logits)(*arguments))
    assert np.abs(here - there).max() <= 1e-4 * there.std()


def test_an_exported_artifact(tiny_run, tmp_path):
    pytest.importorskip("flatbuffers")
    folder = tmp_path / "exported"
    assert export(["--checkpoint", tiny_run, "--output", str(folder)]) == 0
    exported = jax.export.deserialize((folder / "model.stablehlo").read_bytes())
    images = np.random.RandomState(0).randint(0, 256, (5, 28, 28, 3), np.uint8)
    model, params, stats = load_model(tiny_run)
    with jax.default_matmul_precision("highest"):
        found = np.asarray(exported.call(images))
        expected = np.asarray(model.predict(params, stats, images))
    assert np.abs(found - expected).max() <= 1e-2 * expected.std()


def test_the_benchmarks(capsys):
    small = "--batch", "16", "--rounds", "1"
    assert (
        benchmark(["--what", "head", "--models", "noah_pvt_tiny", "--dtype", "bfloat16", *small])
        == 0
    )
    out = capsys.readouterr().out
    assert "| auto |" in out and "not measured" not in out
    models = "--models", "deit_tiny_patch16_224", "--image-size", "32", "--without-pytorch"
    assert benchmark(["--what", "step", *models, *small]) == 0
    assert "| noah | noah_jax |" in capsys.readouterr().out
