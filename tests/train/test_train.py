"""Tests the training program by training: resuming, devices, results, bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from noah_jax import load_model
from noah_jax.benchmark.host import benchmark_host
from noah_jax.errors import CheckpointError
from noah_jax.runs.run_dir import check_config
from noah_jax.train import main as train_program
from noah_jax.train import train
from noah_jax.train.input_pipeline import InputPipeline
from noah_jax.train.setup import build
from tests.helpers import ROOT

# Run in a process of its own with 1 or 4 CPU devices; prints what three steps leave.
THREE_STEPS = """
import json, sys
import jax, numpy as np
from ml_collections import ConfigDict
from noah_jax.config import default_config
from noah_jax.compilation import enable_compilation_cache
from noah_jax.train.setup import build

config = default_config()
with config.unlocked():
    config.update(json.loads(sys.argv[1]))
enable_compilation_cache(sys.argv[2])
setup = build(config)
train_step, _ = setup.steps.compile()
state = setup.states.create()
losses = []
for _, batch in zip(range(3), setup.inputs.train_batches(0), strict=False):
    state, metrics = train_step(state, batch)
    losses.append(float(metrics.loss.total) / float(metrics.loss.count))
leaves = [np.asarray(x) for x in jax.tree.leaves((state["params"], state["stats"]))]
np.savez(sys.argv[3], *leaves, losses=losses, devices=jax.device_count())
"""


def _lines(workdir) -> list[dict]:
    """The metrics without the timings."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    timings = ("images_per_second", "images_per_second_per_chip", "step_ms", "input_wait")
    timings += ("host_ms", "save_seconds", "goodput", "compile_seconds")
    return [{k: v for k, v in line.items() if k not in timings} for line in lines]


def _weights(workdir) -> list[np.ndarray]:
    leaves = []
    for ema in (False, True):
        _, params, stats = load_model(str(workdir), ema=ema)
        leaves += jax.tree.leaves((params, stats))
    return [np.asarray(x) for x in leaves]


def test_a_run_tells_its_tracker_all_that_its_file_has(whole_run):
    lines = map(json.loads, (whole_run.workdir / "metrics.jsonl").read_text().splitlines())
    expected = [
        (line.pop("step"), {f"{split}/{name}": value for name, value in line.items()})
        for line in lines
        for split in [line.pop("split")]
    ]
    assert whole_run.tracker.told == [("start", "whole", None), *expected, ("finish", True)]


@pytest.fixture
def finished(whole_run, tmp_path):
    """A copy of the run, to be changed."""
    workdir = tmp_path / "whole"
    shutil.copytree(whole_run.workdir, workdir)
    return whole_run.config, workdir, whole_run.results


def test_a_run_leaves_everything(finished, capsys):
    config, workdir, results = finished
    assert results == json.loads((workdir / "results.json").read_text())
    assert results["model"] == "noah_resnet18" and results["step"] == 12
    assert results["examples"] == 21 and 0 <= results["top1"] <= results["top5"] == 100
    model, _, _ = load_model(str(workdir))
    assert results["num_params"] == model.num_params
    lines = _lines(workdir)
    assert [(x["step"], x["split"]) for x in lines] == [
        (5, "train"),
        (6, "eval"),
        (6, "eval_ema"),
        (10, "train"),
        (12, "train"),
        (12, "eval"),
        (12, "eval_ema"),
    ]
    assert results["loss"] == lines[-2]["loss"] and results["ema_loss"] == lines[-1]["loss"]
    assert results["ema_loss"] != results["loss"] and results["ema_top5"] == 100
    assert all(np.isfinite(x["loss"]) for x in lines)
    assert list((workdir / "tensorboard").glob("events*"))
    saved = {p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()}
    assert saved == {"3", "6", "9", "12"}
    # Started again it says that it is finished and changes nothing.
    before = (workdir / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train(config, str(workdir)) == results
    assert "is finished" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_the_log_tells_what_waits_for_input(whole_run, tmp_path, monkeypatch, capsys):
    def slow(inputs, start_step):
        for batch in prompt(inputs, start_step):
            time.sleep(0.6)  # an unoptimised step takes 0.15
            yield batch

    def waits(workdir) -> list[float]:
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        return [line["input_wait"] for line in lines if line["split"] == "train"]

    assert all(0 <= share < 1 for share in waits(whole_run.workdir))
    prompt = InputPipeline.train_batches
    monkeypatch.setattr(InputPipeline, "train_batches", slow)
    train(whole_run.config, str(tmp_path / "run"))
    assert all(0.5 < share < 1 for share in waits(tmp_path / "run"))
    out = capsys.readouterr().out
    assert re.search(r"  input wait [5-9]\d %  ", out)
    assert out.count("the devices waited for images for") == 1


# The last of these lies in the second epoch.
@pytest.mark.parametrize("last", [*(pytest.param(n, marks=pytest.mark.slow) for n in (3, 6)), 9])
def test_resuming_at_any_checkpoint_is_exact(finished, tmp_path, last):
    config, whole, results = finished
    workdir = tmp_path / "resumed"
    shutil.copytree(whole, workdir)
    (workdir / "results.json").unlink()
    for step in (3, 6, 9, 12):
        if step > last:
            shutil.rmtree(workdir / "checkpoints" / str(step))
    assert train(config, str(workdir)) == results
    assert _lines(workdir) == _lines(whole)
    for a, b in zip(_weights(workdir), _weights(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_augmentation_on_the_device_resumes_exactly(tiny_config, tmp_path):
    tiny_config.data.rand_augment.num_ops, tiny_config.data.augment_on_device = 2, True
    tiny_config.update(erase_prob=0.0, mixup=0.0, cutmix=0.0, mix_group=None)  # compiles faster
    tiny_config.epochs = tiny_config.epochs / 2
    results = train(tiny_config, str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    (tmp_path / "resumed/results.json").unlink()
    shutil.rmtree(tmp_path / "resumed/checkpoints/6")
    assert train(tiny_config, str(tmp_path / "resumed")) == results
    weights = (_weights(tmp_path / name) for name in ("resumed", "whole"))
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_resuming_after_the_last_step_only_evaluates(finished):
    config, workdir, results = finished
    (workdir / "results.json").unlink()
    lines = _lines(workdir)
    assert train(config, str(workdir)) == results
    assert _lines(workdir) == lines


def test_a_corrupt_checkpoint_falls_back(finished, capsys):
    config, workdir, results = finished
    (workdir / "results.json").unlink()
    whole = _weights(workdir)
    newest = workdir / "checkpoints" / "12"
    payload = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(bytes(data))
    assert train(config, str(workdir)) == results
    assert "older checkpoint of step 9" in capsys.readouterr().out
    for a, b in zip(_weights(workdir), whole, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(seed=1), "seed is 0 there and 1 here"),
        (lambda c: c.model.update(name="resnet18"), "model.name is 'noah_resnet18' there"),
        (lambda c: c.optim.update(learning_rate=0.01), "optim.learning_rate"),
    ],
)
def test_a_folder_of_another_run_is_refused_untouched(tiny_config, tmp_path, change, words):
    (tmp_path / "config.json").write_text(tiny_config.to_json_best_effort())
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    change(tiny_config)
    with pytest.raises(ValueError, match=words):
        train(tiny_config, str(tmp_path))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_operational_keys_may_change(tiny_config, tmp_path):
    (tmp_path / "config.json").write_text(tiny_config.to_json_best_effort())
    tiny_config.checkpoint_every = 5
    check_config(tmp_path, json.loads(tiny_config.to_json_best_effort()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(batch_size=0), "batch_size must be .*, got 0"),
        (lambda c: c.update(epochs=0.01), "less than one step"),
        (lambda c: c.update(log_every=0), "log_every"),
        (lambda c: c.update(eval_every=-1), "eval_every"),
        (lambda c: c.data.update(crop="middle"), "crop"),
        (lambda c: c.data.update(num_threads=0), "data.num_threads must be .* at least 1"),
        (
            lambda c: c.data.update(approximate_decode=True),
            "approximate_decode needs crop=random_resized",
        ),
        (lambda c: c.update(dataset="cifar_ten"), "unknown dataset"),
        (lambda c: c.optim.update(name="lamb"), "optim.name"),
        (
            lambda c: c.optim.update(clip_grad_norm=-1.0),
            "clip_grad_norm must be .* above 0, or None, got -1",
        ),
        (lambda c: c.update(ema_decay=1.0), "ema_decay must be .* above 0 and below 1"),
        (lambda c: c.update(mix_group=5), "mix_group=5 must be even"),
        (lambda c: c.model.update(name="noah_resnet19"), "did you mean noah_resnet18"),
        (lambda c: c.model.update(head_num=5), "head_num=5"),
    ],
)
def test_a_bad_configuration_leaves_no_folder(tiny_config, tmp_path, change, words):
    change(tiny_config)
    with pytest.raises(ValueError, match=words):
        train(tiny_config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_loading_the_moving_average(finished):
    _, workdir, _ = finished
    (_, raw, _), (_, average, _) = (load_model(str(workdir), ema=ema) for ema in (False, True))
    # Twelve steps with a decay of 0.9: on the way to the weights, not there.
    assert not np.allclose(raw["conv1"]["kernel"], average["conv1"]["kernel"], rtol=1e-3)
    for item in (workdir / "checkpoints").glob("*/ema"):
        shutil.rmtree(item)
    with pytest.raises(CheckpointError, match="hold no ema weights; without ema=True the raw"):
        load_model(str(workdir), ema=True)
    load_model(str(workdir))


def test_loading_from_a_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.json"):
        load_model(str(tmp_path))


def _three_steps(config, tmp_path, devices, group) -> dict[str, np.ndarray]:
    config.model.batch_norm_group = config.mix_group = group
    out = tmp_path / f"{devices}.npz"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    cache = str(ROOT / ".pytest_cache" / "jax")
    arguments = [sys.executable, "-c", THREE_STEPS, config.to_json_best_effort(), cache, str(out)]
    subprocess.run(arguments, check=True, env=environment, cwd=tmp_path)
    with np.load(out) as arrays:
        assert arrays["devices"] == devices
        return dict(arrays)


@pytest.mark.slow
@pytest.mark.parametrize("group", [4, 16])  # on one device; across all four
def test_the_device_count_does_not_matter(tiny_config, tmp_path, group):
    tiny_config.batch_size = 16
    tiny_config.optim.learning_rate = 1e-3  # as while warming up
    # In float32 another order of a sum may push a single activation over ReLU's edge, which
    # changes a gradient by 1e-3 of itself.
    tiny_config.model.dtype = "float64"
    # Mixup's images are float32: whether the compiler fuses its products decides their rounding.
    # Cutmix and erasing select pixels.
    tiny_config.mixup = 0.0
    tiny_config.data.rand_augment.num_ops, tiny_config.data.augment_on_device = 2, True
    one = _three_steps(tiny_config, tmp_path, 1, group)
    four = _three_steps(tiny_config, tmp_path, 4, group)
    np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-7)
    for key in one:
        if key.startswith("arr_"):  # a weight or a statistic, kept in float32
            np.testing.assert_allclose(four[key], one[key], rtol=1e-6, atol=1e-7)


def test_each_step_is_compiled_once(tiny_config, caplog):
    setup = build(tiny_config)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        train_step, eval_step = setup.steps.compile()
        state = setup.states.create()
        for batch, _ in zip(setup.inputs.train_batches(0), range(3), strict=False):
            state, _ = train_step(state, batch)
        metrics = setup.steps.empty_eval_metrics()
        for batch in setup.inputs.eval_batches():
            metrics = eval_step(state["params"], state["stats"], batch, metrics)
    compiled = [
        r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()
    ]
    assert sum("jit(train_step)" in message for message in compiled) == 1
    assert sum("jit(eval_step)" in message for message in compiled) == 1
    with pytest.raises(TypeError, match="compiled"):
        train_step(state, {**batch})  # a batch with a mask is another shape: no recompilation


def test_the_program_trains(tmp_path, class_folders, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = ["--config=configs/quickstart.py:linear", f"--workdir={tmp_path}"]
    # The data's normalisation and all else as in the quickstart; 5 steps, evaluated on 21.
    command += [f"--config.dataset=folder:{class_folders}", "--config.epochs=2.6"]
    command += ["--config.optim.warmup_epochs=0.0", "--config.compilation_cache="]
    command += ["--config.model.width=4"]
    assert train_program(command) == 0
    said = capsys.readouterr().out
    for words in ("parameters.txt lists them", "finished in", "results.json", "load_model"):
        assert words in said
    assert "layer4/1/conv2/kernel" in (tmp_path / "parameters.txt").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["model"] == "resnet18"


def test_the_host_benchmark(tiny_config):
    tiny_config.update(erase_prob=0.0, mixup=0.0, cutmix=0.0, mix_group=None)  # compiles faster
    tiny_config.epochs = 5.0
    ms = benchmark_host(build(tiny_config), steps=2)
    assert ms["loop"] > ms["host"] >= 0 and ms["step"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--config.optim.learning_rat=1"],
            "no key optim.learning_rat; did you mean optim.learning_rate?",
        ),
        (["--config.dataset=fashion_mnits"], "unknown dataset 'fashion_mnits'"),
        (["--config.epochs=few"], "could not convert"),
        (["--confg=x"], "confg"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_the_program_answers_bad_input_with_one_line(
    tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(ROOT)
    command = ["--config", "configs/quickstart.py", "--workdir", str(tmp_path / "new")]
    assert train_program([*command, *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1, said.err
    assert words in said.err
    assert not (tmp_path / "new").exists()


def test_the_program_misses_its_files(tmp_path, capsys):
    assert train_program(["--config", "configs/none.py", "--workdir", str(tmp_path / "new")]) == 1
    assert "configs/none.py" in capsys.readouterr().err.splitlines()[-1]
    # As a user starts it, with the lines that its imports might write.
    command = [sys.executable, "-m", "noah_jax.train", "--config", "configs/quickstart.py"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 1 and ran.stdout == "" and ran.stderr.count("\n") == 1
    assert "required: --workdir" in ran.stderr


def test_neither_tensorflow_nor_pytorch_is_imported(tmp_path):
    code = (
        "import sys, noah_jax.train, noah_jax.parity.__main__, noah_jax.benchmark.__main__;"
        "from noah_jax.data.source import SAMPLE;"
        "from noah_jax.data.sources import open_sources; open_sources(SAMPLE)[0][0];"
        "bad = {'tensorflow', 'torch'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
