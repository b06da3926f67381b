"""python -m noah_jax.benchmark --what step, on a small model."""

import importlib.util
import re

import jax
import pytest

from noah_jax import compilation, distributed
from noah_jax.benchmark import step
from noah_jax.benchmark.__main__ import main
from noah_jax.benchmark.train_step import PlainStep
from noah_jax.models import create_model
from noah_jax.timing import Call, take_turns

TINY = {"num_classes": 3, "image_size": 32, "width": 16, "num_heads": 2, "depth": 1}


@pytest.fixture
def tiny(monkeypatch):
    """Makes every backbone a tiny DeiT, and each turn a single step."""
    made = []

    def make_models(name, heads, *, dtype, image_size):
        made.append((name, list(heads), dtype, image_size))
        name = "deit_tiny_patch16_224"
        return {head: create_model(name, head=head, dtype=dtype, **TINY) for head in heads}

    monkeypatch.setattr(step, "_SECONDS", 0.0)
    monkeypatch.setattr(step, "make_models", make_models)
    return made


def run(*arguments):
    return main(["--what", "step", "--batch", "4", "--rounds", "2", *arguments])


def test_both_heads_are_rows_of_a_table(tiny, monkeypatch, capsys):
    monkeypatch.setattr(step, "peak_flops", lambda kind, dtype: 1e12)
    arguments = "--models", "noah_resnet34", "--image-size", "28", "--without-pytorch"
    options = "xla_backend_optimization_level=0", "xla_cpu_enable_fast_math=false"
    assert run(*arguments, *(w for o in options for w in ("--compiler-option", o))) == 0
    assert tiny == [("resnet34", ["linear", "noah"], "bfloat16", 28)]
    out = capsys.readouterr().out
    assert "xla_backend_optimization_level=0, xla_cpu_enable_fast_math=False" in out
    assert f"jax {jax.__version__}" in out
    columns, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in out.splitlines()
        if line.startswith("|")
    ]
    linear, noah = (dict(zip(columns, row, strict=True)) for row in rows)
    assert [row["head"] for row in (linear, noah)] == ["linear", "noah"]
    assert linear["backbone"] == "resnet34" and linear["by"] == "noah_jax"
    for row in (linear, noah):
        images, ms = float(row["images/s"].replace(",", "")), float(row["ms"])
        assert images == pytest.approx(4 / (ms / 1e3), rel=0.02)
        assert re.fullmatch(r"[\d.]+ %", row["MFU"]) and re.fullmatch(r"[\d.]+", row["memory GB"])
    assert linear["time over linear"] == "+0.0 %" and noah["time over linear"].endswith(" %")


def test_an_unknown_compiler_option_is_one_line(tiny, capsys):
    options = "--models", "resnet18", "--heads", "linear", "--without-pytorch"
    assert run(*options, "--compiler-option", "xla_no_such_option=1") == 1
    error = capsys.readouterr().err
    assert "xla_no_such_option" in error and error.count("\n") == 1


def test_an_option_that_wins_is_the_steps_own(tiny, monkeypatch):
    monkeypatch.setitem(compilation.TRAIN_STEP_OPTIONS, "cpu", {"xla_no_such_option": "1"})
    (model,) = step.make_models("any", ["linear"], dtype="float32", image_size=None).values()
    plain = PlainStep(model, distributed.make_mesh(jax.devices()[:1]), 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        plain.compile()


def test_without_timm_it_says_so(tiny, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find_spec(name)
    )
    monkeypatch.setattr(step, "benchmark_step", lambda *_, torch, **__: ({}, {}))
    assert run("--models", "resnet18") == 0
    assert "PyTorch and timm are not both installed" in capsys.readouterr().out


def test_an_implementation_stands_for_the_head():
    models = step.make_models(
        "deit_tiny_patch16_224", ["noah", "chunked", "csra"], dtype="bfloat16", image_size=32
    )
    assert models["noah"].num_params == models["chunked"].num_params
    assert models["csra"].arguments["head"] == "csra"
    assert {model.arguments["dtype"] for model in models.values()} == {"bfloat16"}


def test_turns_alternate_and_their_ratio_is_of_a_round():
    order = []
    calls = {name: Call(lambda name=name: order.append(name), lambda _: None) for name in "ab"}
    times = take_turns(calls, rounds=2, seconds=0.0)
    assert order == ["a", "a", "b", "b"] * 2
    assert times["a"].over(times["a"]) == 1 and len(times["b"].seconds) == 2
