"""The benchmarks as a user runs them."""

import contextlib
import functools
import importlib.util
import json
import re
import time

import pytest

from noah_jax.benchmark import evaluation, input, input_contenders
from noah_jax.benchmark.__main__ import main
from noah_jax.benchmark.photographs import make_photograph, write_class_folder
from noah_jax.data.decoding import decode
from noah_jax.models import create_model, list_models

CHOICES = "--what model or --what head or --what step or --what eval or --what input or --what host"


def run(*arguments):
    return main(arguments)


def test_it_measures_each_round():
    model = create_model("resmlp_12_224", image_size=32, num_classes=5)
    torch = importlib.util.find_spec("torch") is not None
    speeds = evaluation.benchmark_eval(model, batch=2, rounds=3, seconds=0.01, torch=torch)
    assert len(speeds) == (3 if torch else 1)
    assert all(len(values) == 3 and min(values) > 0 for values in speeds.values())


def test_it_prints_a_line_for_a_model(monkeypatch, capsys):
    speeds = {"noah_jax": [40.0, 60.0, 50.0], "torch": [20.0, 25.0, 30.0]}
    monkeypatch.setattr(evaluation, "benchmark_eval", lambda *_, **__: speeds)
    assert run("--what=eval", "--models", "resnet18,noah_pvt_tiny", "--rounds", "3") == 0
    *_, first, second = [line for line in capsys.readouterr().out.splitlines() if "50.0" in line]
    assert first.split() == ["resnet18", "50.0", "25.0", "2.00"]
    assert second.split()[0] == "noah_pvt_tiny"


def test_without_pytorch_it_says_so(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    monkeypatch.setattr(
        evaluation, "benchmark_eval", lambda *_, torch, **__: {"noah_jax": [1.0 + torch]}
    )
    assert run("--what", "eval", "--models", "resnet18") == 0
    out = capsys.readouterr().out
    assert "PyTorch is not installed" in out and "1.0" in out


@pytest.fixture
def quick_turns(monkeypatch, tmp_path):
    """Makes turns short and leaves other loaders out, which take seconds to start."""
    monkeypatch.setattr(input, "measure", functools.partial(input.measure, seconds=0.01))
    monkeypatch.setattr(input, "CONTENDERS", (input_contenders.own_contenders, _another))
    write_class_folder(tmp_path, files=8, different=2)
    return ["--what", "input", "--folder", str(tmp_path), "--batch", "4", "--rounds", "1"]


def _another(setting):
    def batches():
        while True:
            yield [setting.source[0]] * setting.batch

    return {f"another of {setting.recipe.name}": batches()}


def test_the_input_is_measured_beside_its_floors(capsys, quick_turns, tmp_path):
    record = tmp_path / "turns.json"
    assert run(*quick_turns, "--json", str(record)) == 0
    out = capsys.readouterr().out
    assert "8 files" in out and "threads" in out
    rows = dict(re.findall(r"^ *(\S.*?)  +(\d+  +[\d.]+)$", out, re.MULTILINE))
    for name in (
        *("noah_jax", "noah_jax, augment_on_device", "noah_jax, approximate_decode"),
        *("decoding whole images alone", "its transforms alone", "another of cnn"),
    ):
        images, cpu_ms = rows[name].split()
        assert int(images) > 0 and float(cpu_ms) >= 0
    assert out.count("approximate_decode differs from Pillow's pixels by") == 2
    tables = json.loads(record.read_text())
    assert list(tables) == ["cnn", "deit", "threads"]
    assert [len(turns) for turns in tables["deit"].values()] == [1] * len(tables["deit"])
    assert tables["threads"]["1"][0]["speed"] > 0


def test_one_recipe_is_measured_alone(capsys, quick_turns, monkeypatch):
    monkeypatch.setattr(input, "CONTENDERS", (_another,))
    monkeypatch.setattr(input, "approximate", lambda transform: None)
    assert run(*quick_turns, "--recipe", "deit") == 0
    out = capsys.readouterr().out
    assert "another of deit" in out and "another of cnn" not in out and "threads" not in out


def test_turns_are_counted_in_images():
    def batches():
        while True:
            time.sleep(0.002)
            yield

    turns = input.measure({"slow": batches()}, batch=10, rounds=3, seconds=0.05)["slow"]
    assert len(turns) == 3
    assert all(0 < turn.speed < 5000 for turn in turns)  # a batch takes 2 ms at least


def test_made_photographs_are_of_imagenets_kind():
    data = make_photograph(0)
    assert 100_000 < len(data) < 140_000 and decode(data).shape == (375, 500, 3)
    assert make_photograph(0) == data != make_photograph(1)


def test_the_default_models_exist():
    assert set(evaluation.MODELS) <= set(list_models("noah_*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], f"say what to measure: {CHOICES}"),
        (["--what", "evel"], "argument --what: invalid choice: 'evel' (choose from "),
        (["--what"], "argument --what: expected one argument"),
        (["--what", "eval", "--models", "noah_resnet19"], "did you mean noah_resnet18"),
        (["--what", "eval", "--batch", "0"], "--batch"),
        (["--what", "eval", "--config", "x"], "unrecognized arguments: --config x"),
        (["--what", "input", "--folder", "/no/such"], "data folder /no/such does not exist"),
        (["--what", "host"], "--config FILE is needed"),
        (["--what", "head", "--models", "resnet18"], "did you mean noah_resnet18"),
        (["--what", "head", "--heads", "auto,fast"], "--heads: one of auto, xla, pallas"),
        (["--what", "head", "--dtype", "int8"], "--dtype: invalid choice"),
        (["--what", "head", "--topology", "v5e:1x1", "--dtype", "float16"], "--dtype does not go"),
        (["--what", "step", "--heads", "linear,fast"], "--heads: one of linear, noah, auto"),
        (["--what", "step", "--models", "resnet18,resnet19"], "unknown model 'resnet19'"),
        (["--what", "step", "--compiler-option", "fast"], "--compiler-option"),
    ],
)
def test_bad_input_gets_one_line(capsys, arguments, words):
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error:") and captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (
            ["--help"],
            ["--model NAME", "--dtype", "--topology", "--depth", "--rounds", "--folder", "--steps"],
        ),
        (["--what", "head", "--help"], ["--models", "--heads", "--batch", "--rounds", "--depth"]),
        (["--what", "step", "-h"], ["--models", "--heads", "--batch", "--compiler-option"]),
        (["--what=host", "-h"], ["--config FILE", "--config.KEY", "--steps"]),
    ],
)
def test_help_has_every_option(capsys, words, options):
    with contextlib.suppress(SystemExit):
        assert run(*words) == 0
    out = capsys.readouterr().out
    assert all(option in out for option in options), out
