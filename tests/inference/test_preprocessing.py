"""Preprocessing travels with the weights: conversion, runs, every program, overriding it."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from noah_jax import load_model
from noah_jax.config import default_config
from noah_jax.convert.__main__ import main as convert
from noah_jax.data.preprocessing import from_json, of_run
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.explain.__main__ import main as explain
from noah_jax.export.__main__ import main as export
from noah_jax.inference.trained import load_one
from noah_jax.predict.__main__ import main as predict
from noah_jax.pytorch.files import layouts
from noah_jax.pytorch.model_config import read_model_config
from tests.pytorch.files import torch_files as files

# How the golden checkpoints were trained, and their top-1 on the sample's 2,000 test images.
GIVEN = ["mean=0.286", "std=0.353", "resize=64", "crop=64", "interpolation=nearest"]
TOP1 = {
    "mobilenetv2_035_noah.pth.tar": (82.60, ["image_size=64"]),
    "deit_tiny_050_noah.pth": (77.95, []),
    "mixer_s16_050_noah.pth.tar": (85.95, ["--ema"]),
}


@pytest.mark.optimised
@pytest.mark.parametrize("name", TOP1)
def test_really_trained_checkpoints_reach_their_accuracy(name, golden, tmp_path, capsys):
    source = golden / "checkpoints" / name
    if not source.exists():
        pytest.skip(f"{source} is not there; --golden names a folder that has it")
    top1, words = TOP1[name]
    assert convert([str(source), str(tmp_path / "out"), "--set", *GIVEN, *words]) == 0
    assert (
        evaluate(
            ["--checkpoint", str(tmp_path / "out"), "--dataset", "fashion_mnist_sample", "--json"]
        )
        == 0
    )
    out = capsys.readouterr()
    row = json.loads(out.out.splitlines()[-1])
    assert (row["top1"], row["examples"]) == (pytest.approx(top1, abs=1e-9), 2_000)
    said = "mean 0.286, std 0.353, resize 64, crop 64x64, interpolation nearest (given)"
    assert f"{tmp_path}/out: {said}\n" in out.err


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory) -> pathlib.Path:
    """A small NOAH ResNet, in a folder of its own."""
    state = files.golden_state("noah_resnet18", width=4, num_classes=5)
    return files.write(tmp_path_factory.mktemp("small") / "in.pth", state, "cnn", "resnet18")


def _convert(source, folder, *settings):
    assert convert([str(source), str(folder), *settings]) == 0
    return json.loads((folder / "model.json").read_text())["preprocessing"]


def test_the_folder_says_what_was_given(torch_file, tmp_path, capsys):
    settings = ["--set=std=0.353", "mean=0.1,0.2,0.3", "image_size=64", "--set", "resize=cover"]
    stored = _convert(torch_file, tmp_path / "a", *settings)
    sources = stored.pop("source")
    assert stored == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.353] * 3,
        "resize": None,
        "crop": [64, 64],
        "interpolation": "bilinear",
    }
    assert sources == dict.fromkeys(("mean", "std", "resize"), "given") | dict.fromkeys(
        ("crop", "interpolation"), "architecture"
    )
    out = capsys.readouterr().out
    assert "prepared mean 0.1,0.2,0.3 (given), std 0.353 (given), resize cover (given)" in out
    assert "--set mean=... std=... resize=... crop=... interpolation=... says so" in out
    # In Python the weights' own normalisation is the default for uint8 images.
    model, params, stats = load_model(str(tmp_path / "a"))
    pixels = np.random.RandomState(0).randint(0, 256, (2, 64, 64, 3), np.uint8)
    floats = ((pixels / 255 - (0.1, 0.2, 0.3)) / 0.353).astype(np.float32)
    want = jax.jit(model.apply, static_argnames="train")(params, stats, floats, train=False)[0]
    np.testing.assert_allclose(model.predict(params, stats, pixels), want, rtol=1e-3, atol=1e-4)
    assert model.preprocessing.transform()(pixels[0]).shape == (64, 64, 3)


def test_folders_and_files_without_a_record_have_the_architectures(torch_file, tmp_path, capsys):
    stored = _convert(torch_file, tmp_path / "a")
    assert set(stored["source"].values()) == {"architecture"}
    assert (stored["resize"], stored["crop"]) == (256, [224, 224])
    description = json.loads((tmp_path / "a/model.json").read_text())
    del description["preprocessing"]  # as earlier versions wrote it
    (tmp_path / "a/model.json").write_text(json.dumps(description))
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    for path in (tmp_path / "a", torch_file):
        capsys.readouterr()
        assert predict([str(tmp_path / "a.png"), "--checkpoint", str(path)]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{path}: mean 0.485,0.456,0.406, std 0.229,0.224,0.225, resize 256")
        assert "(architecture); if the weights were trained otherwise, give --mean, --std" in line


CFG = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.3], "interpolation": "nearest"}
CFG |= {"input_size": [3, 160, 160], "crop_pct": 0.95}


def test_timms_pretrained_cfg(torch_file, tmp_path, capsys):
    source = str(shutil.copy(torch_file, tmp_path / "in.pth"))
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": CFG}))
    stored = _convert(source, tmp_path / "out", "--set", "std=0.5")
    assert stored["source"].pop("std") == "given"
    assert set(stored.pop("source").values()) == {"timm pretrained_cfg"}
    assert stored == {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "resize": 168,
        "crop": [160, 160],
        "interpolation": "nearest-exact",  # timm's is Pillow's
    }
    assert set(_convert(source, tmp_path / "64", "--set", "image_size=64")["crop"]) == {64}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"std": [0, 0, 0]}}))
    assert convert([source, str(tmp_path / "x"), "--dry-run"]) == 1
    err = capsys.readouterr().err
    assert f"timm's pretrained_cfg of {source} does not fit: std must be above 0" in err
    (tmp_path / "config.json").write_text("[]")  # of some other program
    assert "architecture" in _convert(source, tmp_path / "y")["source"].values()


def test_a_pretrained_cfg_in_the_file_goes_before(tmp_path):
    metadata = layouts._metadata({"state_dict": {}, "pretrained_cfg": CFG})
    assert metadata == {"pretrained_cfg": CFG}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {}}))
    assert read_model_config(str(tmp_path / "in.pth"), metadata).pretrained_cfg == CFG


def test_a_run_has_its_own(tiny_run, class_folders, tmp_path, capsys):
    description = json.loads((pathlib.Path(tiny_run) / "model.json").read_text())
    stored = description.pop("preprocessing")
    assert set(stored["source"].values()) == {"run"} and stored["crop"] == [28, 28]
    # Runs of earlier versions have the same, from their configuration.
    old = shutil.copytree(tiny_run, tmp_path / "old")
    (old / "model.json").write_text(json.dumps(description))
    assert load_one(str(old)).preprocessing == load_one(tiny_run).preprocessing
    image = f"{class_folders}/val/bee/03.png"
    words = "mean 0.2 (given), std 0.229,0.224,0.225 (run), resize cover (run), crop 28x28 (run),"
    for main, arguments in (
        (predict, [image]),
        (explain, ["--image", image, "--output", str(tmp_path / "explanation")]),
        (export, ["--output", str(tmp_path / "exported")]),
        (evaluate, []),
    ):
        given = ["--mean", "0.2", "0.2", "0.2", "--checkpoint", tiny_run]
        assert main([*given, *arguments]) == 0
        err = capsys.readouterr().err
        assert f"{tiny_run}: {words} interpolation bilinear (run)\n" in err
    exported = json.loads((tmp_path / "exported/model.json").read_text())["preprocessing"]
    assert exported["mean"] == [0.2] * 3 and exported["source"]["mean"] == "given"
    assert words in (tmp_path / "exported/README.md").read_text()


def test_whole_images():
    record = of_run(
        {**default_config().data, "squash": True},
        image_size=(28, 24),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    assert record.resize == "squash" and from_json(record.to_json()) == record
    assert "resize squash, crop 28x24" in record.describe()
    assert record.override({"crop": 64}, "given").resize == "squash"
    assert record.override({"resize": 64}, "given").resize == 64
    assert record.override({"resize": "cover"}, "given").resize is None


def test_what_is_overridden_changes_the_numbers(tiny_run, class_folders, capsys):
    image = f"{class_folders}/val/bee/03.png"

    def probabilities(*flags):
        assert predict([image, "--checkpoint", tiny_run, "--json", *flags]) == 0
        row = json.loads(capsys.readouterr().out)
        return sorted((x["class"], x["probability"]) for x in row["classes"])

    own = probabilities()
    model = load_one(tiny_run).model
    same = [f"--mean={','.join(map(str, model.mean))}", "--crop=28", "--resize=28"]
    assert probabilities(*same) == own
    for flags in (["--mean=0.1"], ["--std", "0.9"], ["--resize=40"], ["--crop", "32"]):
        assert probabilities(*flags) != own
    assert probabilities("--resize=40", "--interpolation=nearest") != probabilities("--resize=40")


@pytest.mark.parametrize("main", [predict, explain, export, evaluate])
def test_bad_values_are_one_line(main, tiny_run, class_folders, tmp_path, capsys):
    arguments = {
        predict: [class_folders],
        explain: ["--image", class_folders, "--output", str(tmp_path / "x")],
        export: ["--output", str(tmp_path / "x")],
        evaluate: [],
    }[main]
    for flags, words in (
        (["--std=0"], "std must be above 0"),
        (["--interpolation=cubic"], "interpolation must be one of nearest"),
        (["--crop=64", "--resize=32"], "resize=32 is smaller than the crop"),
    ):
        assert main([*arguments, "--checkpoint", tiny_run, *flags]) == 1
        err = capsys.readouterr().err
        assert words in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_bad_values_in_a_conversion_write_nothing(torch_file, tmp_path, capsys):
    deit = files.golden_state("deit_tiny_050_patch16_224", num_classes=3, image_size=32)
    deit_file = files.write(tmp_path / "deit.pth", deit, "bare", None)
    for source, setting, words in (
        (torch_file, "mean=1,2", "mean must be one number or three"),
        (torch_file, "crop=300", ""),
        (deit_file, "crop=64", "takes images of 32x32 pixels, so crop=64x64 does not fit it"),
        (torch_file, "means=0.5", "takes no argument 'means'"),
    ):
        folder = tmp_path / "out"
        code = convert([str(source), str(folder), "--set", setting, "--dry-run"])
        assert code == (1 if words else 0)
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == code
