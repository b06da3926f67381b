"""The GPU kernels, emulated, against the definition; which shapes they take; that they compile."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from noah_jax.aot import targets
from noah_jax.errors import InputError
from noah_jax.heads.noah import poca
from noah_jax.heads.noah.gpu import gpu_poca
from noah_jax.heads.noah.gpu_blocks import BlockSizes
from noah_jax.heads.noah.gpu_plan import gpu_plan
from noah_jax.heads.noah.gpu_tiles import channel_pieces
from noah_jax.heads.noah.operands import ChannelSplit, PocaInputs, PocaShape, Weights
from noah_jax.nn.dropout import seeds_of
from tests.heads.noah.kernel_checks import (
    assert_close,
    assert_large_scores_do_not_overflow,
    assert_refuses_second_derivatives,
    gpu_mesh,
    make_case,
    value_and_gradients,
)


@pytest.mark.parametrize(
    ("head_split", "kv_split", "head_num", "channels", "num_classes", "dropout", "sizes"),
    [
        (True, True, 2, 16, 70, 0.4, {}),  # several tiles of classes
        (False, True, 2, 64, 40, 0.0, {}),  # channels in pieces
        (True, False, 4, 16, 10, 0.0, {}),
        (True, True, 2, 16, 70, 0.4, dict(forward_images=2, products=True)),
        (False, True, 2, 64, 40, 0.0, dict(forward_images=2, products=True)),
    ],
)
def test_values_and_gradients(
    head_split, kv_split, head_num, channels, num_classes, dropout, sizes
):
    switches = dict(head_split=head_split, kv_split=kv_split)
    features, *weights = make_case(head_num, channels, num_classes, batch=9, **switches)
    features = features.reshape(3, 9, 5, channels)
    block_sizes = dict(images=2, classes=32, outer_positions=32, **sizes)
    shape = PocaShape(
        3,
        (9, 5),
        channels,
        head_num,
        num_classes,
        np.dtype(np.float32),
        ChannelSplit(1 / 4, **switches),
        dropout,
    )
    blocks = gpu_plan(shape, interpret=True, **block_sizes).blocks
    assert blocks.inner_positions == blocks.outer_positions == 32  # two tiles
    assert blocks.images == 2  # and one for the other program
    options = switches | dict(dropout=dropout, dropout_key=jax.random.key(5))
    expected = value_and_gradients(features, *weights, implementation="reference", **options)
    options |= dict(implementation="gpu_interpret", block_sizes=block_sizes)
    assert_close(value_and_gradients(features, *weights, **options), expected, 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2e-2), (jnp.float16, 2e-3)])
def test_narrow_dtypes(dtype, tolerance):
    case = make_case(2, 64, 50, batch=3)
    exact = value_and_gradients(*case, implementation="reference")
    for products in (False, True):
        sizes = dict(forward_images=2, products=products)  # one tile of positions
        actual = value_and_gradients(
            *case, dtype=dtype, implementation="gpu_interpret", block_sizes=sizes
        )
        assert_close(actual, exact, tolerance)


def test_large_scores_do_not_overflow():
    assert_large_scores_do_not_overflow("gpu_interpret", *make_case(2, 16, 9, batch=2))


def test_second_derivatives_are_refused():
    assert_refuses_second_derivatives("gpu_interpret", *make_case(2, 16, 9, batch=2))


@pytest.mark.parametrize(("head_split", "dropout"), [(True, 0.4), (False, 0.0)])
def test_exported_programs_compute_the_same_without_the_kernel(head_split, dropout):
    features, query, value = make_case(2, 16, 600, head_split=head_split, batch=3)
    split = ChannelSplit(1 / 4, head_split)
    shape = PocaShape(3, (3, 5), 16, 2, 600, features.dtype, split, dropout)
    key = jax.random.key(5)

    def loss(compute, features, query, value):
        logits = compute(features, query, value)
        return (jnp.sin(logits) * jnp.cos(jnp.arange(600))).sum(), logits

    def by_the_kernel(features, query, value):
        seeds = seeds_of(key, 3) if dropout else None
        weights = Weights(query.kernel, value.kernel, value.bias)
        return gpu_poca(plan, PocaInputs(split, features, weights, seeds))

    def by_definition(*arguments):
        options = split._asdict() | dict(dropout=dropout, dropout_key=key)
        return poca(*arguments, implementation="reference", **options)

    actual, expected = (
        jax.jit(jax.grad(functools.partial(loss, compute), argnums=(0, 1, 2), has_aux=True))
        for compute in (by_the_kernel, by_definition)
    )
    with jax.sharding.use_abstract_mesh(gpu_mesh()):
        plan = gpu_plan(shape)
        exported = jax.export.export(actual, platforms=("cpu", "cuda"))(features, query, value)
    arguments = features, query, value
    assert_close(exported.call(*arguments), expected(*arguments), 2e-6)


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_kernels_lower_inside_a_shard_map_that_checks_types(axes, products):
    mesh = gpu_mesh(2).update_axis_types({"data": axes})
    features, *weights = make_case(2, 16, 9, batch=4)
    sharding = NamedSharding(mesh, jax.P("data"))
    features = jax.ShapeDtypeStruct(features.shape, jnp.bfloat16, sharding=sharding)
    whole = jax.P()

    def loss(*operands):
        options = dict(implementation="gpu", block_sizes=dict(products=products))
        return jax.lax.psum((poca(*operands, key_ratio=0.25, **options) ** 2).sum(), "data")

    def of_all(*operands):
        specs = (jax.P("data"), whole, whole)
        return jax.shard_map(loss, in_specs=specs, out_specs=whole)(*operands)

    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(of_all, argnums=(0, 1, 2))).trace(features, *weights)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton") == 3  # forward, and two or those of two blocks


def _shape(query, value, *, positions=196, batch=16, dtype=jnp.bfloat16):
    """Makes the shape of a head of four blocks with so many query and value channels each."""
    channels = 4 * (query + value)
    split = ChannelSplit((query + 0.01) / (query + value))
    shape = PocaShape(batch, (positions,), channels, 4, 1000, jnp.dtype(dtype), split)
    assert shape.block_channels == (query, value)
    return shape


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (_shape(24, 24), None),
        (_shape(64, 448, positions=49), None),
        (_shape(64, 464, positions=49), "at most 512 channels a block in bfloat16, got 528"),
        (_shape(64, 448, dtype=jnp.float32), "at most 256 channels a block in float32, got 512"),
        (_shape(24, 24, dtype=jnp.float16), None),
        (_shape(24, 24, dtype=jnp.int8), "bfloat16 or float16 or float32 features, got int8"),
        (_shape(24, 24, positions=0), "at least one position"),
        (_shape(24, 24, batch=2**17), "1 to 65535 images a device"),
        (_shape(24, 24, batch=7), "7 images do not divide among 2 devices"),
    ],
)
def test_which_shapes_fit_on_two_devices(shape, why):
    with jax.sharding.use_abstract_mesh(gpu_mesh(2)):
        if why is None:
            assert gpu_plan(shape).blocks.classes == 64
        else:
            with pytest.raises(InputError, match=why):
                gpu_plan(shape)


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        (dict(tiles=3), "block sizes are inner_positions, .*; got 'tiles'"),
        (dict(classes=48), "classes must be at least 16 and a power of two, got 48"),
        (dict(warps=0), "warps must be at least 1"),
        (dict(images="8"), "images cannot be '8'"),
        (dict(products=1), "products cannot be 1"),
    ],
)
def test_wrong_block_sizes_are_named(sizes, why):
    with pytest.raises(InputError, match=why):
        gpu_plan(_shape(24, 24), interpret=True, **sizes)


def test_narrow_blocks_keep_what_was_measured():
    blocks = gpu_plan(_shape(24, 24, batch=128), interpret=True).blocks
    assert blocks == BlockSizes(32, 64, 64, forward_images=1, images=16, warps=4)
    assert gpu_plan(_shape(64, 448, positions=49), interpret=True).blocks.products


@pytest.mark.parametrize("channels", [1, 16, 24, 40, 49, 96, 120, 448])
def test_pieces_cover_the_channels(channels):
    end = 0
    for start, size in channel_pieces(channels):
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
        (196, 192, 0.5, "float16", 0.0),
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
    wide = channels == 2048  # forward, and the gradients of each of four blocks
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == (5 if wide else 3)
    shapes = re.findall(r"\w\[(\d+(?:,\d+)*)\]", text)
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in shapes]
    assert sizes and max(sizes) < batch * 4 * positions * classes
