"""Tests the comparison of heads: which runs it needs, on the same data, and its statistics."""

import json
import math
import subprocess
import sys

import pytest

from noah_jax.compare.__main__ import main
from noah_jax.compare.curves import curves_figure
from noah_jax.compare.program import resolve
from noah_jax.compare.summary import format_table, paired_difference, summarise
from noah_jax.compare.variants import DEFAULT_CONFIGS, variant_for
from noah_jax.errors import UsageError
from tests.helpers import ROOT

QUICKSTART = str(ROOT / "configs/quickstart.py")


@pytest.mark.parametrize(
    ("config", "linear", "noah"),
    [
        ("q.py", "q.py:linear", "q.py:noah"),
        ("q.py:noah", "q.py:linear", "q.py:noah"),
        ("c/deit.py:deit_x", "c/deit.py:deit_x", "c/deit.py:noah_deit_x"),
        ("c/deit.py:noah_deit_x", "c/deit.py:deit_x", "c/deit.py:noah_deit_x"),
    ],
)
def test_the_variants_of_the_heads(config, linear, noah):
    assert variant_for(config, "linear") == linear
    assert variant_for(config, "noah") == noah


@pytest.mark.parametrize("config", ["quickstart.py", "sample.py:deit", "resnet.py:noah_resnet18"])
def test_the_heads_of_the_configurations_differ_in_the_head_alone(config):
    linear, noah = resolve(str(ROOT / "configs" / config), ["linear", "noah"], [])
    assert noah["model.name"] == "noah_" + linear["model.name"]
    assert noah["seed"] == linear["seed"] and noah["batch_size"] == linear["batch_size"]


def test_the_recipe_for_own_photographs_has_both_heads():
    linear, noah = resolve(str(ROOT / "configs" / "finetune.py"), ["linear", "noah"])
    assert (linear["model.name"], linear["model.head"]) == (None, "linear")
    assert noah == {**linear, "model.head": "noah"}


def test_heads_that_differ_in_more_are_refused(tmp_path):
    lines = [
        "from noah_jax.config import default_configdef get_config(head):",
        "    config = default_config()",
        "    config.model.name = 'noah_resnet18' if head == 'noah' else 'resnet18'",
        "    config.epochs = 3.0 if head == 'noah' else 2.0",
        "    return config",
    ]
    path = tmp_path / "unfair.py"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match="differ in more than the head: epochs"):
        resolve(str(path), ["linear", "noah"], [])
    assert resolve(str(path), ["linear", "noah"], ["--config.epochs=1"])
    with pytest.raises(
        UsageError, match="should have the linear head, but its model is noah_resnet18"
    ):
        resolve(str(path), ["linear"], ["--config.model.name=noah_resnet18"])


def test_the_interval_is_students():
    # The sleep data of Student (1908), whose interval every textbook has.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    difference = paired_difference(first, second)
    assert difference["mean"] == pytest.approx(1.58)
    assert difference["mean"] - difference["half_width"] == pytest.approx(0.7001142, abs=1e-6)
    assert math.isnan(paired_difference([1.0], [2.0])["half_width"])
    assert paired_difference([1.0, 2.0], [2.0, 3.0]) == {"mean": 1.0, "half_width": 0.0}


def test_the_packaged_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for config in DEFAULT_CONFIGS:
        assert resolve(config, ["linear", "noah"])[1]["model.name"].startswith("noah_")


def test_the_table():
    runs = [
        dict(
            config="q",
            head=head,
            seed=seed,
            model=head,
            num_params=1000,
            measure="top1",
            value=top1,
        )
        for head, values in {"linear": [50.0, 52.0], "noah": [51.0, 53.2]}.items()
        for seed, top1 in enumerate(values)
    ]
    rows = summarise(runs, ["linear", "noah"])
    lines = format_table(rows, ["linear", "noah"]).splitlines()
    assert lines[2] == "| linear | 1,000 | 2 | 51.00 ± 1.41 % |  |"
    assert lines[3] == "| noah | 1,000 | 2 | 52.10 ± 1.56 % | +1.10 (-0.17 to +2.37) |"
    single = summarise([run for run in runs if run["seed"] == 0], ["linear", "noah"])
    lines = format_table(single, ["linear", "noah"]).splitlines()
    assert lines[3] == "| noah | 1,000 | 1 | 51.00 % | +1.00 |"


def test_end_to_end_and_again(tmp_path, monkeypatch, capfd):
    config = str(ROOT / "configs/sample.py") + ":mixer"
    command = ["--config", config, "--seeds", "5", "--workdir", str(tmp_path)]
    command += ["--config.epochs=0.0192", "--config.optim.warmup_epochs=0"]
    command += ["--config.model.depth=1", "--config.eval_batch_size=500"]
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert "| noah_mixer_b16_224 |" in printed
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "compare.json").read_text())
    assert [run["head"] for run in written["runs"]] == ["linear", "noah"]
    for run in written["runs"]:
        config = json.loads((next(tmp_path.glob(f"*{run['head']}*")) / "config.json").read_text())
        assert config["seed"] == 5
        # Three steps of 64 images of 10,000.
        assert run["curve"] == [[pytest.approx(3 * 64 / 10_000), run["top1"]]]

    # Finished runs are not started again; those of another configuration are refused.
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("trained again"))
    assert main(command) == 0
    assert capfd.readouterr().out == printed
    assert main([*command, "--config.batch_size=16"]) == 1
    assert "holds a run of another configuration: batch_size" in capfd.readouterr().err


def _runs(config: str, model: str, seeds: int) -> list[dict]:
    return [
        {
            "config": config,
            "head": head,
            "model": f"noah_{model}" if head == "noah" else model,
            "measure": "top1",
            "curve": [(epoch * 1.0016, 50.0 + seed + epoch) for epoch in range(1, 5)],
        }
        for head in ("linear", "noah")
        for seed in range(seeds)
    ]


def test_the_curves_have_titles_units_and_whole_epochs():
    runs = [*_runs("configs/quickstart.py", "resnet18", 3), *_runs("猫.py", "mixer_b16_224", 1)]
    figure = curves_figure(runs)
    figure.canvas.draw()
    axes = figure.get_axes()
    assert [axis.get_title() for axis in axes] == ["resnet18", "mixer_b16_224"]
    assert "Top-1 accuracy" in figure.get_suptitle()
    for axis in axes:
        assert axis.get_xlabel() == "epoch" and axis.get_ylabel() == "Top-1 accuracy (%)"
        assert all(float(tick).is_integer() for tick in axis.get_xticks())
        assert {0, 1, 2, 3, 4} <= set(axis.get_xticks())
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == ["linear head (mean of 3 seeds)", "NOAH head (mean of 3 seeds)"]
    mean = max(axes[0].get_lines(), key=lambda each: each.get_linewidth())
    assert list(mean.get_ydata()) == [52.0, 53.0, 54.0, 55.0]
    # Of two configurations with one backbone the files are told too.
    titles = [axis.get_title() for axis in curves_figure([*runs, *_runs("c", "resnet18", 1)]).axes]
    assert titles == ["resnet18 (configs/quickstart.py)", "mixer_b16_224", "resnet18 (c)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/none.py"], "the configuration file cannot be read"),
        (["--config.epoch=1"], "the configuration has no key epoch; did you mean epochs?"),
        (["--seeds", "1", "1"], "--seeds repeats a value: 1 1"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_mistakes(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_failed_training_is_told(tmp_path, monkeypatch, capsys):
    def fail(command):
        assert command[:3] == [sys.executable, "-m", "noah_jax.train"]
        raise subprocess.CalledProcessError(75, command)

    monkeypatch.setattr("noah_jax.compare.program._run_training", fail)
    assert main(["--config", QUICKSTART, "--workdir", str(tmp_path)]) == 75
    assert "a training was stopped; the same command goes on from there" in capsys.readouterr().err
