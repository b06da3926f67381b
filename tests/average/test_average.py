"""Tests the averages of checkpoints, and that what cannot be averaged is refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from noah_jax import create_model, load_model
from noah_jax.average.__main__ import main
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.inference.loading import load_with_step
from noah_jax.runs.model_folder import write_model_folder


def _tree(folder, step=None):
    loaded = load_with_step(str(folder), step=step)
    return {"params": loaded.params, "stats": loaded.stats}


def _write(folder: pathlib.Path, description, tree) -> str:
    write_model_folder(epath.Path(folder), description, tree)
    return str(folder)


def _description(folder) -> dict:
    return json.loads((pathlib.Path(folder) / "model.json").read_text())


def test_all_checkpoints_of_a_run_count_alike(tiny_run, tmp_path, capsys):
    output = tmp_path / "mean"
    assert main([f"{tiny_run}/checkpoints", "--output", str(output)]) == 0
    assert "BatchNorm's statistics are averaged too" in capsys.readouterr().out
    first, second, mean = _tree(tiny_run, 6), _tree(tiny_run, 12), _tree(output)
    for a, b, c in zip(*map(jax.tree.leaves, (first, second, mean)), strict=True):
        exact = (np.float64(a) + np.float64(b)) / 2
        assert np.array_equal(c, exact.astype(np.asarray(c).dtype))
    # The programs know it as they know the run: its data, classes and preprocessing.
    model, _, _ = load_model(str(output))
    assert model.class_names == load_model(tiny_run)[0].class_names
    assert evaluate(["--checkpoint", str(output), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["examples"] == 21


def test_a_greedy_average_leaves_out_what_harms(tiny_run, tmp_path, capsys):
    tree = _tree(tiny_run)
    bad = jax.tree.map(lambda x: -3 * np.asarray(x), tree["params"])
    good = _write(tmp_path / "good", _description(tiny_run), tree)
    tree_of_bad = {"params": bad, "stats": tree["stats"]}
    bad = _write(tmp_path / "bad", _description(tiny_run), tree_of_bad)
    output = tmp_path / "soup"
    # The first says which dataset decides.
    assert main([tiny_run, bad, good, "--output", str(output), "--greedy"]) == 0
    said = capsys.readouterr().out
    (left_out,) = [line for line in said.splitlines() if "left out" in line]
    assert left_out.startswith(bad)
    source = json.loads((output / "model.json").read_text())["source"]
    assert source["average_of"] == [f"{tiny_run}", good]
    for a, b in zip(*map(jax.tree.leaves, (tree, _tree(output))), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"class_names": ["ant", "bee", "cow"]}, "the classes"),
        ({"arguments": {"head_num": 4}}, "the argument head_num is 4 and 2"),
        ({"preprocessing": {"mean": [0.1, 0.1, 0.1]}}, "the preprocessing"),
    ],
)
def test_other_models_are_refused(tiny_run, tmp_path, capsys, change, words):
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    (other / "config.json").unlink()
    description = _description(other)
    for key, value in change.items():
        description[key] = description[key] | value if isinstance(value, dict) else value
    (other / "model.json").write_text(json.dumps(description))
    if "arguments" in change:
        model = create_model(description["name"], **description["arguments"])
        params, stats = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), model.abstract())
        shutil.rmtree(other)
        _write(other, description, {"params": params, "stats": stats})
    output = tmp_path / "mean"
    assert main([tiny_run, str(other), "--output", str(output)]) == 1
    assert words in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--output", "OUT"], "at least two checkpoints, got 1"),
        (["--output", "OUT", "--split", "val"], "for --greedy"),
    ],
)
def test_what_does_not_fit_is_one_line(tiny_run, tmp_path, capsys, arguments, words):
    arguments = [str(tmp_path / "out") if x == "OUT" else x for x in arguments]
    assert main([tiny_run, *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) <= 2
