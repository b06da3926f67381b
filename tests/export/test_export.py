"""Runs python -m noah_jax.export on a tiny run; the artifact runs with JAX alone."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from noah_jax import create_model, load_model
from noah_jax.export.__main__ import main
from noah_jax.export.stablehlo import PLATFORMS
from noah_jax.heads.registry import HEADS
from tests.heads.noah.kernel_checks import tpu_mesh

# Runs the artifact where neither this package nor Flax can be imported.
_ALONE = """
import sys
for name in ("noah_jax", "flax", "optax", "orbax"):
    sys.modules[name] = None
import pathlib, jax.export, numpy
folder, out = map(pathlib.Path, sys.argv[1:])
exported = jax.export.deserialize((folder / "model.stablehlo").read_bytes())
print(",".join(exported.platforms))
images = numpy.load(out / "images.npy")
numpy.savez(out / "logits.npz", all=exported.call(images), one=exported.call(images[:1]))
"""


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory) -> pathlib.Path:
    pytest.importorskip("flatbuffers")
    folder = tmp_path_factory.mktemp("export") / "exported"
    assert main(["--checkpoint", tiny_run, "--output", str(folder)]) == 0
    return folder


def test_the_artifact_runs_without_this_package(exported, tiny_run, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (5, 28, 28, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", _ALONE, str(exported), str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "cpu,tpu,cuda"
    model, params, stats = load_model(tiny_run)
    preprocessing = json.loads((exported / "model.json").read_text())["preprocessing"]
    shown = (images / 255 - np.array(preprocessing["mean"])) / np.array(preprocessing["std"])
    expected, _ = model.apply(params, stats, shown.astype(np.float32), train=False)
    with np.load(tmp_path / "logits.npz") as file:
        logits = dict(file)
    assert np.abs(logits["all"] - expected).max() <= 1e-4 * np.std(expected)
    assert np.abs(logits["one"] - expected[:1]).max() <= 1e-4 * np.std(expected)


def test_what_lies_beside_it(exported, tiny_run):
    description = json.loads((exported / "model.json").read_text())
    assert description["classes"] == ["ant", "bee", "cat"]
    assert description["input"]["shape"] == ["batch", 28, 28, 3]
    assert description["preprocessing"]["center_crop"] == [28, 28]
    assert description["preprocessing"]["interpolation"] == "bilinear"
    _, params, stats = load_model(tiny_run)
    weights = load_file(exported / "weights.safetensors")
    assert np.array_equal(weights["params/head/query/kernel"], params["head"]["query"]["kernel"])
    assert np.array_equal(weights["stats/bn1/mean"], stats["bn1"]["mean"])
    card = (exported / "README.md").read_text()
    results = json.loads((pathlib.Path(tiny_run) / "results.json").read_text())
    assert f"| {results['top1']:.2f} % |" in card and "after step 12" in card
    assert '"optim"' in card  # the configuration
    assert "six months" in card and "`weights.safetensors`" in card


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("noah_deit_tiny_patch16_224", dict(width=24, depth=1)),
        ("deit_tiny_patch16_224", dict(width=24, depth=1)),
        ("noah_pvt_tiny", dict(widths=(8,) * 4, depths=(1,) * 4, num_heads=(1,) * 4)),
        ("noah_mixer_s16_224", dict(width=24, depth=1)),
        ("noah_gmlp_ti16_224", dict(width=24, depth=1)),
    ],
)
def test_other_families_are_for_all_platforms_and_any_batch(name, arguments):
    model = create_model(name, num_classes=3, image_size=32, **arguments).portable()
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), 32, 32, 3), jnp.float32)
    logits = jax.jit(functools.partial(model.apply, train=False))
    found = jax.export.export(logits, platforms=PLATFORMS)(*model.abstract(), images)
    assert found.platforms == PLATFORMS


@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_is_for_any_batch(head):
    arguments = dict(num_classes=3, image_size=32, width=24, depth=1)
    model = create_model("mixer_s16_224", head=head, **arguments).portable()
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), 32, 32, 3), jnp.float32)
    logits, _ = jax.eval_shape(
        functools.partial(model.apply, train=False), *model.abstract(), images
    )
    assert str(logits.shape) == "(batch, 3)"


def test_a_kernel_for_one_platform_is_not_exported():
    model = create_model("noah_deit_tiny_patch16_224", depth=1, dtype="bfloat16")
    images = jax.ShapeDtypeStruct((128, *model.image_size, 3), jnp.float32)
    for one, has_kernel in ((model.portable(), False), (model, True)):
        with jax.sharding.use_abstract_mesh(tpu_mesh()):
            program = jax.make_jaxpr(functools.partial(one.apply, train=False))(
                *model.abstract(), images
            )
        assert ("noah_head_forward" in str(program)) == has_kernel


def test_a_taken_folder_is_left_alone(exported, tiny_run, capsys):
    before = sorted(p.stat().st_mtime_ns for p in exported.iterdir())
    assert main(["--checkpoint", tiny_run, "--output", str(exported)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert sorted(p.stat().st_mtime_ns for p in exported.iterdir()) == before


def test_nothing_is_left_of_a_failure(tiny_run, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    assert main(["--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 1
    assert "holds no model.json" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
