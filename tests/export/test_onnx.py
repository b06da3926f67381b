"""Runs export --onnx on small models of every family and with every head; needs jax2onnx."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from noah_jax.export.__main__ import main
from noah_jax.heads.registry import HEADS
from noah_jax.models import create_model
from noah_jax.runs.model_folder import write_model_folder
from tests.helpers import ROOT

_DIMENSIONS = {
    "resnet18": dict(width=8, depths=(1, 1, 1, 1)),
    "resnet50": dict(width=8, depths=(1, 1, 1, 1), stem="small"),
    "mobilenetv2_035": {},
    "mobilenetv3_small": dict(width_mult=0.5),
    "shufflenetv2_050": dict(depths=(1, 1, 1)),
    "deit_tiny_patch16_224": dict(width=24, depth=1),
    "vit_small_patch14_dinov2": dict(width=24, num_heads=2, depth=1, image_size=28),
    "pvt_tiny": dict(widths=(8,) * 4, depths=(1,) * 4, num_heads=(1,) * 4),
    "mixer_s16_224": dict(width=24, depth=1),
    "gmixer_12_224": dict(width=24, depth=1),
    "resmlp_12_224": dict(width=24, depth=1),
    "gmlp_ti16_224": dict(width=24, depth=1),
}


def _folder(path: pathlib.Path, name: str, **arguments) -> str:
    """Writes the folder of a model with random weights."""
    model = create_model(name, **{"num_classes": 12, "image_size": 32, **arguments})
    params, stats = model.init(jax.random.key(0))
    # What starts at 0 or 1 would hide a mistake.
    draw = np.random.default_rng(0)
    params, stats = jax.tree.map(
        lambda x: np.float32(x + 0.1 * draw.uniform(0, 1, x.shape)), (params, stats)
    )
    description = {
        "name": model.name,
        "arguments": model.arguments,
        "class_names": list("abcdefghijkl"),
    }
    write_model_folder(path, description, {"params": params, "stats": stats})
    return str(path)


def _run(path: pathlib.Path, images: np.ndarray):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images})
    return session, logits


def _check(source: str, path: pathlib.Path) -> None:
    """Compares an exported file with the model on photographs, in batches of several sizes."""
    from noah_jax.inference.trained import load_one

    pytest.importorskip("jax2onnx")
    assert main(["--checkpoint", source, "--onnx", str(path)]) == 0
    trained = load_one(source)
    transform = trained.preprocessing.transform()
    photographs = sorted((ROOT / "tests/data/golden/images").glob("*.jpg"))[:4]
    images = np.stack([transform(np.asarray(Image.open(x).convert("RGB"))) for x in photographs])
    expected = np.asarray(trained.predict(images))
    for size in (1, 4):
        actual = _run(path, images[:size])[1]
        assert actual.dtype == np.float32 and actual.shape == (size, expected.shape[1])
        assert np.abs(actual - expected[:size]).max() <= 1e-4 * expected.std()


@pytest.mark.parametrize("prefix", ["", "noah_"])
@pytest.mark.parametrize("name", _DIMENSIONS)
def test_every_family(name, prefix, tmp_path):
    source = _folder(tmp_path / "in", prefix + name, **_DIMENSIONS[name])
    _check(source, tmp_path / "out.onnx")


@pytest.mark.parametrize("head", sorted(HEADS.keys() - {"linear", "noah"}))
def test_every_head(head, tmp_path):
    source = _folder(tmp_path / "in", "resnet18", head=head, **_DIMENSIONS["resnet18"])
    _check(source, tmp_path / "out.onnx")


def test_what_a_run_writes(tiny_run, tmp_path, capsys):
    pytest.importorskip("jax2onnx")
    out = tmp_path / "model.onnx"
    assert main(["--checkpoint", tiny_run, "--onnx", str(out)]) == 0
    # The run's own images are on this machine.
    assert "(5 images of" in capsys.readouterr().out
    session, _ = _run(out, np.zeros((3, 28, 28, 3), np.uint8))
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [28, 28, 3])
    assert (logits.name, logits.shape[1]) == ("logits", 3)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == ["ant", "bee", "cat"]
    assert json.loads(metadata["preprocessing"])["crop"] == [28, 28]
    before = out.read_bytes()
    assert main(["--checkpoint", tiny_run, "--onnx", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err and out.read_bytes() == before
