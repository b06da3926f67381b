"""The converter as a user runs it: in, out again, and what it refuses."""

import gzip
import hashlib
import json
import os
import pathlib
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from noah_jax import load_model
from noah_jax.convert.__main__ import main
from noah_jax.evaluate.__main__ import main as evaluate_main
from noah_jax.explain.__main__ import main as explain_main
from noah_jax.export.__main__ import main as export_main
from noah_jax.inference.trained import load_one
from noah_jax.models import create_model, get_family
from noah_jax.parity.__main__ import main as parity_main
from noah_jax.predict.__main__ import main as predict_main
from noah_jax.pytorch.golden import golden_state_dict
from noah_jax.pytorch.load import load_torch
from noah_jax.pytorch.mapping import to_torch
from noah_jax.runs import model_folder
from tests.helpers import original_models
from tests.pytorch.files import torch_files as files

# A small member of every family, and its arguments.
SMALL = {
    "noah_resnet18": dict(width=8, num_classes=5),
    "resnet50": dict(width=4, num_classes=5, stem="small"),
    "noah_mobilenetv2_035": dict(num_classes=5),
    "mobilenetv3_small": dict(num_classes=5),
    "noah_shufflenetv2_050": dict(num_classes=5),
    "deit_tiny_050_patch16_224": dict(num_classes=5, image_size=64, pre_logits=True),
    "vit_small_patch14_reg4_dinov2": dict(width=64, depth=1, num_heads=1, num_classes=5),
    "noah_pvt_tiny_050": dict(num_classes=5, image_size=64),
    "noah_gmlp_ti16_050_224": dict(num_classes=5, image_size=64),
    "resmlp_12_224": dict(num_classes=5, image_size=32),
}


def _torch_state(model, params, stats):
    return to_torch({"params": params, "stats": stats}, get_family(model.name).table)


def _assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value.dtype == expected[key].dtype and value.shape == expected[key].shape, key
        assert value.tobytes() == expected[key].tobytes(), key


def _without_counters(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", SMALL)
def test_in_and_out_again_is_bit_exact(name, tmp_path, capsys):
    state = files.golden_state(name, **SMALL[name])
    kind = files.FORMATS[list(SMALL).index(name) % len(files.FORMATS)]
    source = files.write(tmp_path / "in.pth", state, kind, "net")
    assert main([str(source), str(tmp_path / "folder")]) == 0
    assert "weights  raw" in capsys.readouterr().out
    model, _, _ = load_model(str(tmp_path / "folder"))
    files.assert_same_model(model, create_model(name, **SMALL[name]))
    out = tmp_path / "out.safetensors"
    assert main(["--to-torch", str(tmp_path / "folder"), str(out)]) == 0
    _assert_same(load_file(out), state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "in.pth", "out.safetensors"]


def _check_format(path, state, kind, name, arguments):
    source = files.write(path, state, kind, name)
    for ema in (False, True)[: 2 if kind in files.WITH_EMA else 1]:
        loaded = load_torch(source, ema=ema)
        if loaded.model.name == name:
            files.assert_same_model(loaded.model, create_model(name, **arguments))
        else:  # the file has no name, and two names have the same weights
            assert kind not in files.WITH_NAME
            assert any(name in note and "same weights" in note for note in loaded.notes)
            assert loaded.model.abstract() == create_model(name, **arguments).abstract()
        expected = _without_counters(state)
        if ema:
            expected = {key: value / 2 for key, value in expected.items()}
        _assert_same(_torch_state(loaded.model, loaded.params, loaded.stats), expected)


@pytest.mark.parametrize("kind", files.FORMATS)
@pytest.mark.parametrize("name", ["noah_resnet18", "deit_tiny_050_patch16_224"])
def test_every_format(name, kind, tmp_path):
    state = files.golden_state(name, **SMALL[name])
    _check_format(tmp_path / "in.pth", state, kind, name, SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", original_models())
def test_every_model_in_every_format(name, tmp_path, golden):
    with gzip.open(golden / "models.json.gz", "rt") as file:
        spec = json.load(file)[name]
    state = golden_state_dict(spec["state"], spec["gain"])
    family = get_family(name).name
    given = {"pre_logits": "pre_logits.fc.weight" in state} if family == "deit" else {}
    for kind in files.FORMATS:
        _check_format(tmp_path / "in.pth", state, kind, name, given)
    (tmp_path / "in.pth").unlink()


def test_a_really_trained_checkpoint(tmp_path, golden, capsys):
    source = golden / "checkpoints" / "mobilenetv2_035_noah.pth.tar"
    folder = tmp_path / "folder"
    folder.mkdir()  # empty, so not taken
    assert main([str(source), str(folder)]) == 0
    said = capsys.readouterr().out
    assert "noah_mobilenetv2_035: 409,088 parameters" in said
    assert "10 classes, N = 8, r = 0.25" in said and "epoch 3, acc 81.97" in said
    metadata = json.loads((folder / "model.json").read_text())
    assert metadata["name"] == "noah_mobilenetv2_035"
    origin = metadata["source"]
    assert origin["file"] == source.name and origin["weights"] == "raw"
    assert origin["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert origin["facts"]["acc"] == 81.97
    # Loading the file itself gives the same.
    for actual, expected in zip(load_model(str(folder)), load_model(str(source)), strict=True):
        if isinstance(actual, dict):
            jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory) -> pathlib.Path:
    """A small NOAH ResNet in the CNN training's format."""
    state = files.golden_state("noah_resnet18", width=4, num_classes=5)
    return files.write(tmp_path_factory.mktemp("small") / "in.pth", state, "cnn", "resnet18")


def _error(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_a_dry_run_writes_nothing(small_file, tmp_path, capsys):
    assert main([str(small_file), str(tmp_path / "folder"), "--dry-run"]) == 0
    assert "noah_resnet18" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_settings_on_the_command_line(small_file, tmp_path, capsys):
    arguments = [small_file, tmp_path / "folder", "--dry-run", "--set"]
    assert main([*map(str, arguments), "image_size=64"]) == 0
    assert "64 x 64 pixels" in capsys.readouterr().out
    assert "takes no argument 'sizes'" in _error(capsys, *arguments, "sizes=3")


def test_what_is_in_the_way_stays(small_file, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    for target in ("folder", "folder/mine"):
        assert "exists already" in _error(capsys, small_file, tmp_path / target)
    assert "is not a folder" in _error(capsys, small_file, tmp_path / "none" / "folder")
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "mine"]


def test_a_failure_leaves_nothing(small_file, tmp_path, capsys, monkeypatch):
    def fail(directory, tree):
        directory.mkdir()
        (directory / "half").write_text("")
        raise OSError("No space left on device")

    monkeypatch.setattr(model_folder, "save_model", fail)
    assert "No space left" in _error(capsys, small_file, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_every_problem_is_listed_and_refused(tmp_path, capsys):
    state = files.golden_state("noah_resnet18", width=4, num_classes=5)
    del state["bn1.weight"], state["layer3.0.conv1.weight"]
    state["surplus.weight"] = np.zeros(3, np.float32)
    state["head.value.weight"] = state["head.value.weight"][:, :1]
    state["bn1.bias"] = state["bn1.bias"].astype(np.int64)
    save_file(state, tmp_path / "in.safetensors")
    message = _error(
        capsys, tmp_path / "in.safetensors", tmp_path / "out", "--model", "noah_resnet18",
        "--set", "head_num=4", "--set", "num_classes=5", "--set", "key_ratio=0.5",
        "--set", "width=4",
    )  # fmt: skip
    for problem in (
        "missing key bn1.weight",
        "missing key layer3.0.conv1.weight",
        "extra key surplus.weight",
        "bn1.bias is int64",
        "head.value.weight has shape (20, 1, 1, 1), the model needs (20, 4, 1, 1)",
    ):
        assert problem in message
    assert not (tmp_path / "out").exists()


def test_no_ema_weights(small_file, tmp_path, capsys):
    assert "no EMA weights" in _error(capsys, small_file, tmp_path / "folder", "--ema")


def test_files_for_pytorch(small_file, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "folder"
    assert main([str(small_file), str(folder)]) == 0
    (tmp_path / "there.safetensors").write_text("mine")
    for name, problem in (
        ("there.safetensors", "exists already"),
        ("out.npz", "must end in .safetensors or .pth"),
    ):
        assert problem in _error(capsys, "--to-torch", folder, tmp_path / name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs PyTorch, which is not installed" in _error(
        capsys, "--to-torch", folder, tmp_path / "out.pth"
    )
    assert "no model.json" in _error(capsys, "--to-torch", tmp_path, tmp_path / "out.safetensors")
    assert "takes the folder of a model" in _error(
        capsys, "--to-torch", small_file, tmp_path / "out.safetensors"
    )


def test_files_that_pytorch_reads_and_writes(small_file, tmp_path):
    torch = pytest.importorskip("torch")
    folder, out = tmp_path / "folder", tmp_path / "out.pth"
    assert main([str(small_file), str(folder)]) == 0
    assert main(["--to-torch", str(folder), str(out)]) == 0
    state = torch.load(out, weights_only=True)
    expected = files.golden_state("noah_resnet18", width=4, num_classes=5)
    _assert_same({key: value.numpy() for key, value in state.items()}, expected)
    loaded = load_torch(out)
    found = _torch_state(loaded.model, loaded.params, loaded.stats)
    _assert_same(found, _without_counters(expected))


def test_weights_without_a_head(tmp_path, capsys, golden):
    """DINOv2 as its authors publish it gives features, and other programs say what it lacks."""
    sizes = dict(width=64, depth=1, num_heads=1, image_size=56)
    state = files.golden_state("vit_small_patch14_dinov2", **sizes)
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    source, folder = str(tmp_path / "dinov2.safetensors"), str(tmp_path / "folder")
    save_file(state | {"mask_token": np.zeros((1, 64), np.float32)}, source)
    assert main([source, folder, "--set", "image_size=28"]) == 0
    said = capsys.readouterr().out
    assert "head     none" in said and "the file has no head: the model gives the last" in said
    assert "pos_embed is resized from 4x4 to 2x2 positions" in said
    model, params, stats = load_model(folder)
    assert model.predict(params, stats, np.zeros((1, 28, 28, 3), np.uint8)).shape == (1, 2, 2, 64)
    back = str(tmp_path / "back.safetensors")
    assert main(["--to-torch", folder, back]) == 0
    assert load_file(back).keys() == state.keys()

    photo, out = str(golden / "images" / "china.jpg"), str(tmp_path / "out")
    reference = str(tmp_path / "reference.npz")
    np.savez(reference, images=np.zeros((1, 3, 28, 28)), logits=np.arange(1000.0)[None])
    for program_main, words in (
        (evaluate_main, ["--checkpoint", folder, "--dataset", "fashion_mnist_sample"]),
        (predict_main, ["--checkpoint", folder, photo]),
        (explain_main, ["--checkpoint", folder, "--image", photo, "--output", out]),
        (export_main, ["--checkpoint", folder, "--output", out]),
        (parity_main, ["--checkpoint", folder, "--reference", reference]),
    ):
        capsys.readouterr()
        assert program_main(words) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and "without a head" in error
    assert not os.path.exists(out)


def test_a_fresh_head(tmp_path, capsys):
    """A backbone whose head nobody knows gets a fresh one, which every program warns of."""
    state = files.golden_state("resnet18", width=4, num_classes=5, image_size=32)
    state = {key.replace("head.2.", "fc.1."): value for key, value in state.items()}
    source, folder = tmp_path / "in.pth", tmp_path / "folder"
    files.write(source, state, "bare", "")
    assert "fc.1.bias: shape (5,) in the file" in _error(capsys, source, folder)
    arguments = [source, folder, "--head", "fresh", "--set", "num_classes=3"]
    assert main([*map(str, arguments), "--model", "noah_resnet18", "--set", "width=4"]) == 0
    said = capsys.readouterr().out
    assert "the head is fresh (noah, 3 classes): train it before you use it" in said
    assert "2 key(s) beside the model are left out: fc.1.bias, fc.1.weight" in said
    assert json.loads((folder / "model.json").read_text())["source"]["head"] == "fresh"
    model, params, _ = load_model(str(folder))
    files.assert_same_model(model, create_model("noah_resnet18", width=4, num_classes=3))
    kernel = state["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["layer1"]["0"]["conv1"]["kernel"], kernel)
    load_one(str(folder)).check_head()
    assert "has a fresh head, which was never trained" in capsys.readouterr().err
