"""Weights that are not finite are refused in one line, by every program."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from noah_jax import load_model
from noah_jax.convert.__main__ import main as convert
from noah_jax.errors import InputError
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.explain.__main__ import main as explain
from noah_jax.export.__main__ import main as export
from noah_jax.models.finite import check_finite
from noah_jax.predict.__main__ import main as predict
from noah_jax.runs.checkpoints import save_model
from noah_jax.train.__main__ import main as train
from tests.pytorch.files import torch_files as files


@pytest.fixture(scope="module")
def poisoned(tiny_run, tmp_path_factory):
    """The run with three values of one kernel and one bias that are not finite."""
    folder = tmp_path_factory.mktemp("poisoned") / "run"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("checkpoints", "results.json"))
    _, params, stats = load_model(tiny_run)
    flat = {key: np.array(x) for key, x in flatten_dict(params, sep="/").items()}
    flat["conv1/kernel"].flat[[0, 5]] = np.nan, -np.inf
    flat["head/query/bias"].flat[3] = np.inf
    params = unflatten_dict(flat, sep="/")
    save_model(folder / "checkpoints", {"params": params, "stats": stats})
    return str(folder)


def test_every_program_refuses_them(poisoned, class_folders, tmp_path, capsys):
    with pytest.raises(InputError, match=r"2 of 108 value.* of params/conv1/kernel are not finite"):
        load_model(poisoned)
    for main, arguments in (
        (predict, [class_folders, "--checkpoint", poisoned]),
        (evaluate, ["--checkpoint", poisoned]),
        (export, ["--checkpoint", poisoned, "--output", str(tmp_path / "x")]),
        (
            explain,
            ["--image", class_folders, "--checkpoint", poisoned, "--output", str(tmp_path / "x")],
        ),
        (convert, ["--to-torch", poisoned, str(tmp_path / "x.safetensors")]),
        (
            train,
            [
                "--config=quickstart.py",
                f"--workdir={tmp_path / 'x'}",
                f"--config.init_from={poisoned}",
            ],
        ),
    ):
        assert main(arguments) == 1
        out = capsys.readouterr()
        assert out.out == "" and out.err.count("\n") == 1
        assert f"{poisoned}: 2 of 108 value(s) of params/conv1/kernel are not finite" in out.err
        assert "and 1 value(s) of 1 other(s)" in out.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_pytorch_files(value, tmp_path, capsys):
    state = files.golden_state("noah_resnet18", width=4, num_classes=5)
    dtype = np.float64 if value == 1e300 else np.float32
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].astype(dtype)
    state["layer1.0.conv1.weight"].flat[7] = value
    save_file(state, tmp_path / "in.safetensors")
    assert convert([str(tmp_path / "in.safetensors"), str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    key = "params/layer1/0/conv1/kernel" if value == 1e300 else "layer1.0.conv1.weight"
    assert f"in.safetensors: 1 of 144 value(s) of {key} are not finite" in err
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_all_kinds_of_arrays():
    good = [np.zeros(0), np.zeros((2, 3), np.int32), jnp.ones(3, "bfloat16"), np.array(1.0)]
    check_finite(dict(enumerate(good)), "here")
    for bad in (jnp.full(3, jnp.nan, "bfloat16"), np.array(-np.inf), np.full(2, np.nan)):
        with pytest.raises(InputError, match="of bad are not finite"):
            check_finite({"good": np.zeros(2), "bad": bad}, "here")
