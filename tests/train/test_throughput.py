"""Tests speeds, goodput and profiles."""

import json
import time

import numpy as np
import pytest
from etils import epath

from noah_jax import create_model
from noah_jax.models.flops import multiply_adds
from noah_jax.train import throughput, train
from noah_jax.train.input_pipeline import InputPipeline


def _train_lines(workdir) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


def test_peaks_are_known_by_the_whole_name():
    assert throughput.peak_flops("TPU v5 lite") == 197e12
    assert throughput.peak_flops("TPU v5") == 459e12
    assert throughput.peak_flops("cpu") is None
    assert throughput.peak_flops("TPU") is None


def test_peaks_are_those_of_the_dtype():
    assert throughput.peak_flops("NVIDIA H100 80GB HBM3", "float16") == 989e12
    assert throughput.peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
    assert throughput.peak_flops("Tesla V100-SXM2-16GB") is None
    assert throughput.peak_flops("Tesla V100-SXM2-16GB", "float16") == 125e12
    assert throughput.peak_flops("TPU v4", "float16") is None


def test_training_takes_six_flops_a_multiply_add():
    model = create_model("resnet18", num_classes=3, image_size=32, width=8)
    assert throughput.train_flops(model) == 6 * multiply_adds(model)


def test_goodput_counts_steps_once_and_all_time_since_the_first_start(tmp_path, monkeypatch):
    workdir, now = epath.Path(tmp_path), 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    first = throughput.Goodput(workdir, start_step=0, started=1000.0)
    now = 1100.0
    assert first.fraction(60) == pytest.approx(0.6)
    first.save(10, 60)
    now = 1140.0
    first.save(20, 90)  # which the crash leaves unfinished
    # It starts again at 1200 after step 10: 30 s of training are lost, and 60 s without any.
    now = 1250.0
    second = throughput.Goodput(workdir, start_step=10, started=1200.0)
    assert second.fraction(0) == pytest.approx(60 / 250)
    assert second.fraction(40) == pytest.approx(100 / 250)
    second.save(20, 40)
    third = throughput.Goodput(workdir, start_step=20, started=1250.0)
    assert third.fraction(0) == pytest.approx(100 / 250)


def test_a_corrupt_goodput_file_does_not_stop_a_run(tmp_path, capsys):
    (tmp_path / "goodput.json").write_text("{")
    goodput = throughput.Goodput(epath.Path(tmp_path), start_step=5, started=time.time())
    assert goodput.fraction(0) == 0
    assert "goodput.json cannot be read" in capsys.readouterr().err


def test_a_run_accounts_for_its_time(tiny_config, tmp_path, monkeypatch, capsys):
    peak = 1e9  # of a device that the table does not have
    monkeypatch.setattr(throughput, "peak_flops", lambda kind: peak)
    tiny_config.eval_every = tiny_config.checkpoint_every = 5
    workdir = tmp_path / "run"
    train(tiny_config, str(workdir), profile=True)
    lines = _train_lines(workdir)
    flops = tiny_config.batch_size * throughput.train_flops(_model(tiny_config))
    devices = 1
    for line in lines:
        assert line["images_per_second_per_chip"] * devices == line["images_per_second"]
        step_seconds = line["step_ms"] / 1000
        assert line["images_per_second"] == pytest.approx(tiny_config.batch_size / step_seconds)
        assert line["mfu"] == pytest.approx(flops / step_seconds / peak / devices)
        assert 0 < line["goodput"] < 1
    assert [line["save_seconds"] > 0 for line in lines] == [False, True, True]
    assert lines[0]["compile_seconds"] > 0 and "compile_seconds" not in lines[1]
    said = capsys.readouterr().out
    for words in ("a chip", "ms/step", "MFU", "goodput", "compiled in", "saving"):
        assert words in said, words

    # The profile is of five steps.
    assert f"profile of steps 8 to 12 in {workdir}/profile" in said
    assert list((workdir / "profile").rglob("*.xplane.pb"))

    # The file has the time of training, which is less than that of the whole run.
    report = json.loads((workdir / "goodput.json").read_text())
    assert list(report["training_seconds"]) == ["5", "10", "12"]
    trained = np.sum([line["step_ms"] / 1000 for line in lines] * np.array([5, 5, 2]))
    assert report["training_seconds"]["12"] == pytest.approx(trained, rel=0.2)


def test_a_run_without_a_known_peak_has_no_mfu_and_no_profile(tiny_config, tmp_path, monkeypatch):
    # Time that the evaluation takes is not training.
    evaluated = InputPipeline.eval_batches

    def slow(inputs):
        time.sleep(1)
        yield from evaluated(inputs)

    monkeypatch.setattr(InputPipeline, "eval_batches", slow)
    workdir = tmp_path / "run"
    begin = time.time()
    train(tiny_config, str(workdir))
    seconds = time.time() - begin
    assert not (workdir / "profile").exists()
    assert not any("mfu" in line for line in _train_lines(workdir))
    trained = json.loads((workdir / "goodput.json").read_text())["training_seconds"]["12"]
    assert trained < seconds - 2


def _model(config):
    arguments = {k: v for k, v in config.model.to_dict().items() if v is not None}
    return create_model(num_classes=3, **arguments)
