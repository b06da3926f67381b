"""Runs export --onnx on small models of every family and with every head, with jax2onnx."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from noah_jax.export.__main__ import main
from noah_jax.export.onnx_file import _evaluate, _operation
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

needs_jax2onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("jax2onnx", "onnx", "onnxruntime"))),
    reason="jax2onnx, onnx and onnxruntime are not installed",
)


def _folder(path: pathlib.Path, name: str, **arguments) -> str:
    """Writes the folder of a model with random weights."""
    model = create_model(name, **{"num_classes": 12, "image_size": 32, **arguments})
    params, stats = model.init(jax.random.key(0))
    # What starts at 0 or 1 would hide a mistake.
    draw = np.random.default_rng(0)
    params, stats = jax.tree.map(
        lambda x: np.float32(x + 0.1 * draw.uniform(-1, 1, x.shape)), (params, stats)
    )
    description = {
        "name": model.name,
        "arguments": model.arguments,
        "class_names": list("abcdefghijkl"),
    }
    write_model_folder(path, description, {"params": params, "stats": stats})
    return str(path)


def _run(path: pathlib.Path, images: np.ndarray):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images})
    return session, logits


def _check(source: str, path: pathlib.Path) -> None:
    """Compares an exported file with the model on photographs, in batches of several sizes."""
    from noah_jax.inference.trained import load_one

    assert main(["--checkpoint", source, "--onnx", str(path)]) == 0
    trained = load_one(source)
    transform = trained.preprocessing.transform()
    photographs = sorted((ROOT / "tests/data/golden/images").glob("*.jpg"))[:3]
    images = np.stack([transform(np.asarray(Image.open(x).convert("RGB"))) for x in photographs])
    expected = np.asarray(trained.predict(images))
    for size in (1, 3):
        actual = _run(path, images[:size])[1]
        assert actual.dtype == np.float32 and actual.shape == (size, expected.shape[1])
        assert np.abs(actual - expected[:size]).max() <= 1e-4 * expected.std()


@needs_jax2onnx
@pytest.mark.parametrize("prefix", ["", "noah_"])
@pytest.mark.parametrize("name", _DIMENSIONS)
def test_every_family(name, prefix, tmp_path):
    source = _folder(tmp_path / "in", prefix + name, **_DIMENSIONS[name])
    _check(source, tmp_path / "out.onnx")


@needs_jax2onnx
@pytest.mark.parametrize("head", sorted(HEADS.keys() - {"linear", "noah"}))
def test_every_head(head, tmp_path):
    source = _folder(tmp_path / "in", "resnet18", head=head, **_DIMENSIONS["resnet18"])
    _check(source, tmp_path / "out.onnx")


@pytest.mark.parametrize("package", ["onnxruntime", "jax2onnx"])
def test_a_missing_library_is_named(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else name)
    assert main(["--checkpoint", "none", "--onnx", str(tmp_path / "a.onnx")]) == 1
    install = {"onnxruntime": "'noah-jax[onnx]'", "jax2onnx": "--no-deps jax2onnx"}[package]
    said = f"error: --onnx needs {package}, which is not installed: pip install {install}\n"
    assert capsys.readouterr().err == said and not list(tmp_path.iterdir())


def test_the_file_is_a_new_one_with_its_suffix(tmp_path, capsys):
    taken = tmp_path / "taken.onnx"
    taken.write_bytes(b"mine")
    for name, said in (("model.pb", "NAME.onnx"), ("taken.onnx", "exists already")):
        assert main(["--checkpoint", "none", "--onnx", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert said in error and name in error and error.count("\n") == 1
    assert taken.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [taken]


def test_a_program_of_primitives_computes_the_same():
    def computed(x):
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        x = jnp.pad(jax.nn.silu(x), ((0, 0), (1, 2), (0, 0), (0, 3)), constant_values=2.0)
        return jax.lax.platform_dependent(x, tpu=lambda x: x - 1, default=jnp.sin)

    values = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    traced = jax.make_jaxpr(computed)(values)
    (found,) = _evaluate(traced.jaxpr, traced.consts, [values])
    assert np.array_equal(found, computed(values))
    inner = jax.make_jaxpr(lambda x: _evaluate(traced.jaxpr, traced.consts, [x]))(values)
    names = {equation.primitive.name for equation in inner.eqns}
    assert "concatenate" in names and not names & {"pad", "cond", "jit", "platform_index"}


def test_an_operation_without_a_form_is_named():
    def fails(eqn):
        raise ValueError("unknown")

    (equation,) = jax.make_jaxpr(jnp.sin)(1.0).eqns
    with pytest.raises(ValueError) as caught:
        fails(equation)
    assert _operation(caught.value) == "JAX's sin"
    assert _operation(ValueError("no plugin for primitive 'top_k'")) == "JAX's top_k"


@needs_jax2onnx
def test_what_a_run_writes(tiny_run, tmp_path, capsys):
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
