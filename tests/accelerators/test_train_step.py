"""A train step of each family on a GPU or a TPU against the same step on the CPU."""

import jax
import numpy as np
import pytest

from noah_jax import create_model, distributed
from noah_jax.benchmark.train_step import PlainStep

pytestmark = [pytest.mark.gpu, pytest.mark.tpu]

SMALL = {"num_classes": 5, "image_size": 32}
TRANSFORMER = {"width": 32, "num_heads": 2, "depth": 2}
MLP = {"width": 32, "depth": 2}
FAMILIES = [
    ("noah_resnet18", {"width": 8, "stem": "small"}),
    ("noah_mobilenetv2_035", {}),
    ("noah_mobilenetv3_small", {}),
    ("noah_shufflenetv2_050", {}),
    ("noah_deit_tiny_patch16_224", TRANSFORMER),
    ("deit_tiny_patch16_224", TRANSFORMER),
    (
        "noah_pvt_tiny",
        {"widths": (16, 16, 32, 32), "depths": (1,) * 4, "num_heads": (1, 2, 2, 4)},
    ),
    ("noah_mixer_s16_224", MLP),
    ("noah_gmixer_12_224", MLP),
    ("noah_resmlp_12_224", MLP),
    ("noah_gmlp_ti16_224", MLP),
]


def step_on(device, name, arguments, dtype, state=None):
    """Runs one step; returns the state before it, and loss, norms and parameters after it."""
    model = create_model(name, dtype=dtype, **SMALL, **arguments)
    plain = PlainStep(model, distributed.make_mesh([device]), 16)
    state = plain.state() if state is None else state
    before = jax.tree.map(np.array, state)  # copies, because the step takes the memory of the state
    placed = jax.device_put(before, distributed.replicated(plain.mesh))
    after, metrics = plain.compile()(placed, plain.random_batch())
    figures = {
        "loss": float(metrics.loss.compute()),
        "grad_norm": float(metrics.grad_norm),
        "update_norm": float(metrics.update_norm),
    }
    return before, figures, jax.tree.map(np.array, after)


@pytest.mark.parametrize(("name", "arguments"), FAMILIES)
def test_float32(name, arguments):
    with jax.default_matmul_precision("highest"):
        before, expected, after = step_on(jax.devices("cpu")[0], name, arguments, "float32")
        _, actual, here = step_on(jax.devices()[0], name, arguments, "float32", before)
    assert actual == pytest.approx(expected, rel=1e-3)
    for part in ("params", "stats"):
        leaves = (jax.tree.leaves(tree[part]) for tree in (here, after, before))
        for one, other, old in zip(*leaves, strict=True):
            moved = np.abs(other - old).max()
            assert np.abs(one - other).max() <= 1e-2 * moved + 1e-6


@pytest.mark.parametrize(("name", "arguments"), FAMILIES)
def test_bfloat16(name, arguments):
    with jax.default_matmul_precision("highest"):
        before, expected, _ = step_on(jax.devices("cpu")[0], name, arguments, "float32")
    _, actual, _ = step_on(jax.devices()[0], name, arguments, "bfloat16", before)
    assert actual["loss"] == pytest.approx(expected["loss"], rel=0.05)
    assert actual["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.2)
