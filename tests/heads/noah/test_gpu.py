"""The GPU kernels, emulated, against the definition; which shapes they take; that they compile."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from noah_jax import poca
from noah_jax.aot import targets
from noah_jax.heads.noah import gpu as pallas_gpu
from noah_jax.heads.noah import poca as head
from noah_jax.heads.noah.chunked import Operands
from tests.heads.noah.kernel_checks import (
    assert_close,
    assert_refuses_second_derivatives,
    make_case,
    value_and_gradients,
)


@pytest.fixture
def emulated(monkeypatch):
    """On CPUs "pallas" is the GPU kernels; the list of their plans."""
    plans = []

    def kernels(_, split, operands, rate, platforms):
        plan = pallas_gpu.gpu_plan(operands, dropout=rate, interpret=True)
        plans.append(plan)
        return {"cpu": functools.partial(head._from_parts, pallas_gpu.gpu_poca, plan, split)}

    monkeypatch.setattr(head, "_kernels", kernels)
    return plans


@pytest.mark.parametrize(
    ("head_split", "kv_split", "head_num", "channels", "num_classes", "dropout"),
    [
        (True, True, 2, 16, 70, 0.4),  # several tiles of classes
        (False, True, 2, 64, 40, 0.0),  # channels in pieces
        (True, False, 4, 16, 10, 0.0),
    ],
)
def test_values_and_gradients(
    head_split, kv_split, head_num, channels, num_classes, dropout, emulated, monkeypatch
):
    switches = dict(head_split=head_split, kv_split=kv_split)
    features, *weights = make_case(head_num, channels, num_classes, batch=9, **switches)
    features = features.reshape(3, 9, 5, channels)
    options = switches | dict(dropout=dropout, dropout_key=jax.random.key(5))
    monkeypatch.setattr(pallas_gpu, "_WARPS", 2 * 8 * head_num * -(-num_classes // 32))
    ours, reference = (
        value_and_gradients(features, *weights, implementation=form, **options)
        for form in ("pallas", "reference")
    )
    plan = emulated[0]
    assert plan.positions == plan.rows == 32  # two tiles
    assert plan.images == 2  # and one for the other program
    assert_close(ours, reference, 2e-6)


def test_bfloat16(emulated):
    case = make_case(2, 64, 50, batch=2)
    exact = value_and_gradients(*case, implementation="reference")
    ours = value_and_gradients(*case, dtype=jnp.bfloat16, implementation="pallas")
    assert emulated
    assert_close(ours, exact, 2e-2)


def test_large_scores_do_not_overflow(emulated):
    features, query, value = make_case(2, 16, 9, batch=2)
    query = query._replace(kernel=100 * query.kernel)
    ours, reference = (
        value_and_gradients(features, query, value, implementation=form)
        for form in ("pallas", "reference")
    )
    assert emulated
    assert np.isfinite(ours[0]).all()
    assert_close(ours, reference, 1e-4)


def test_second_derivatives_are_refused(emulated):
    assert_refuses_second_derivatives(*make_case(2, 16, 9, batch=2))
    assert emulated


def _operands(query, value, *, positions=196, batch=16, dtype=jnp.bfloat16):
    array = jax.ShapeDtypeStruct
    parts = (array((4, batch, positions, width), dtype) for width in (query, value))
    kernels = (array((4, width, 1000), jnp.float32) for width in (query, value))
    return Operands(*parts, *kernels, array((4, 1000), jnp.float32))


@pytest.mark.parametrize(
    ("operands", "fits"),
    [
        (_operands(24, 24), True),
        (_operands(64, 448, positions=49), True),
        (_operands(64, 464, positions=49), False),
        (_operands(64, 448, dtype=jnp.float32), False),
        (_operands(24, 24, dtype=jnp.float16), False),
        (_operands(24, 24, positions=0), False),
        (_operands(24, 24, batch=2**17), False),
        (_operands(24, 24, batch=7), False),
    ],
)
def test_which_shapes_fit_on_two_devices(operands, fits):
    assert (pallas_gpu.gpu_plan(operands, devices=2) is not None) == fits


@pytest.mark.parametrize("channels", [1, 16, 24, 40, 49, 96, 120, 448])
def test_pieces_cover_the_channels(channels):
    end = 0
    for start, size in pallas_gpu._pieces(channels):
        assert start == end
        assert size >= 16 and size & (size - 1) == 0
        end = start + size
    assert channels <= end < channels + 16


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["h100:1", "h100:2"])
@pytest.mark.parametrize(
    ("positions", "channels", "key_ratio", "dtype", "dropout"),
    [
        (196, 192, 0.5, "bfloat16", 0.1),  # DeiT-Tiny
        (576, 768, 0.5, "bfloat16", 0.0),  # DeiT-B
        (49, 2048, 0.125, "bfloat16", 0.0),  # ResNet-50
        (196, 192, 0.5, "float32", 0.0),
    ],
)
def test_it_compiles_for_gpus(topology, positions, channels, key_ratio, dtype, dropout):
    try:
        mesh = targets.topology_mesh(topology)
    except ValueError as error:  # no compiler, or JAX began without JAX_PLATFORMS=cpu
        pytest.skip(str(error))
    batch, classes = 128, 1000
    query = int(channels * key_ratio) // 4

    def array(*shape, dtype=jnp.float32, axes=()):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, jax.P(*axes)))

    def step(*operands):
        def loss(*operands):
            logits = poca(
                *operands,
                key_ratio=key_ratio,
                dropout=dropout,
                dropout_key=jax.random.key(0),
                implementation="pallas",
            )
            return (logits**2).sum()

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(loss, argnums=(0, 1, 2))(*operands)

    weights = (
        (array(4, width, classes), array(4, classes)) for width in (query, channels // 4 - query)
    )
    features = array(batch * mesh.size, positions, channels, dtype=dtype, axes=("data",))
    text = jax.jit(step).lower(features, *weights).compile().as_text()
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 3
    shapes = re.findall(r"\w\[(\d+(?:,\d+)*)\]", text)
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in shapes]
    assert sizes and max(sizes) < batch * 4 * positions * classes
