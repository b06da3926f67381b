"""The TPU kernel, emulated, against the definition; which shapes it takes; how it is sharded."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from noah_jax.aot import targets
from noah_jax.errors import InputError
from noah_jax.heads.noah import Projection, poca
from noah_jax.heads.noah.tpu_tiles import vmem_limit
from tests.heads.noah.kernel_checks import (
    assert_close,
    assert_large_scores_do_not_overflow,
    assert_refuses_second_derivatives,
    make_case,
    tpu_mesh,
    value_and_gradients,
)
from tests.helpers import ROOT


def _uses_kernel(function, *arguments):
    return "pallas_call" in str(jax.make_jaxpr(function)(*arguments))


def _assert_is_the_definition(case, implementation, **options):
    """Checks values and gradients of a kernel."""
    actual = value_and_gradients(*case, implementation=implementation, **options)
    options.pop("block_sizes", None)
    expected = value_and_gradients(*case, implementation="reference", **options)
    assert_close(actual, expected, 2e-6)


@pytest.mark.parametrize(
    ("head_split", "kv_split", "head_num", "num_classes", "batch", "dropout"),
    [
        (True, True, 2, 200, 32, 0.4),  # several groups of images
        (False, True, 2, 130, 8, 0.0),
        (True, False, 4, 10, 16, 0.4),
        (False, False, 1, 300, 16, 0.0),  # several chunks
    ],
)
def test_values_and_gradients(head_split, kv_split, head_num, num_classes, batch, dropout):
    switches = dict(head_split=head_split, kv_split=kv_split)
    case = make_case(head_num, 16, num_classes, batch=batch, **switches)
    options = switches | dict(dropout=dropout, dropout_key=jax.random.key(5))
    run = functools.partial(poca, key_ratio=0.25, **options)
    assert _uses_kernel(functools.partial(run, implementation="pallas"), *case)
    _assert_is_the_definition(case, "tpu_interpret", **options)


@pytest.mark.parametrize(
    ("head_num", "channels", "images"),
    [
        (2, 32, 256),  # several tiles
        (1, 288, 128),  # query and value channels do not stand side by side
    ],
)
def test_of_a_map_whose_images_come_last(head_num, channels, images):
    case = make_case(head_num, channels, 130, batch=images, spatial=(2, 2), key_ratio=0.5)
    options = dict(key_ratio=0.5, block_sizes={"rows": 128 * 4})
    run = functools.partial(poca, implementation="tpu_interpret", **options)
    program = str(jax.make_jaxpr(run)(*case))
    assert f"f32[4,2,{channels // 2},{images}]" in program  # the whole map
    assert f"f32[{images // 128},{head_num},128,256]" in program
    _assert_is_the_definition(case, "tpu_interpret", **options)


@pytest.mark.parametrize(
    ("images", "channels", "options"),
    [
        (64, 32, dict(key_ratio=0.5)),
        (128, 128, dict(key_ratio=0.5)),
        (128, 48, dict(key_ratio=0.5)),
        (128, 32, dict(key_ratio=0.25)),
        (128, 32, dict(key_ratio=0.5, dropout=0.4, dropout_key=jax.random.key(5))),
        (128, 32, dict(key_ratio=0.5, kv_split=False)),
        (128, 32, dict(key_ratio=0.5, head_split=False)),
    ],
)
def test_other_maps_are_cut_into_tiles(images, channels, options):
    switches = {key: value for key, value in options.items() if "dropout" not in key}
    case = make_case(2, channels, 10, batch=images, spatial=(2, 2), **switches)
    run = functools.partial(poca, implementation="tpu_interpret", **options)
    assert f"f32[4,2,{channels // 2},{images}]" not in str(jax.make_jaxpr(run)(*case))
    expected = poca(*case, implementation="reference", **options)
    np.testing.assert_allclose(run(*case), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("head_num", "num_classes", "batch"),
    [(2, 200, 32), (4, 10, 16), (1, 300, 24)],
)
def test_of_a_map_whose_positions_come_first(head_num, num_classes, batch):
    case = make_case(head_num, 16, num_classes, batch=batch)
    options = dict(spatial_major=True, dropout=0.4)  # without a key it is off
    program = jax.make_jaxpr(
        functools.partial(poca, key_ratio=0.25, implementation="pallas", **options)
    )(*case)
    assert f"f32[15,{batch},16]" in str(program)  # the whole map, positions first
    _assert_is_the_definition(case, "tpu_map_interpret", **options)


@pytest.mark.parametrize(
    "options",
    [
        dict(head_split=False),
        dict(kv_split=False),
        dict(dropout=0.4, dropout_key=jax.random.key(5)),
    ],
)
def test_what_is_no_kernel_for_maps_takes_the_other(options):
    switches = {key: value for key, value in options.items() if "split" in key}
    case = make_case(2, 16, 20, **switches)
    run = functools.partial(poca, key_ratio=0.25, **options)
    whole = functools.partial(run, implementation="pallas", spatial_major=True)
    assert _uses_kernel(whole, *case)
    expected = run(*case, implementation="reference")
    np.testing.assert_allclose(whole(*case), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("implementation", "options"),
    [
        (
            "tpu_interpret",
            dict(dropout=0.4, dropout_key=jax.random.key(5), block_sizes={"rows": 16 * 15}),
        ),
        ("tpu_map_interpret", dict(spatial_major=True, block_sizes={"vmem": 2_000_000})),
    ],
)
def test_several_tiles(implementation, options):
    case = make_case(2, 16, 40, batch=48)
    whole = {key: value for key, value in options.items() if key != "block_sizes"}
    run = functools.partial(poca, key_ratio=0.25, implementation=implementation)
    programs = (jax.make_jaxpr(functools.partial(run, **o))(*case) for o in (options, whole))
    assert ["f32[3,16,128]" in str(program) for program in programs] == [True, False]
    _assert_is_the_definition(case, implementation, **options)


@pytest.mark.parametrize(
    "options", [dict(dropout=0.1, dropout_key=jax.random.key(5)), dict(spatial_major=True)]
)
def test_bfloat16(options):
    case = make_case(2, 64, 50)
    exact = value_and_gradients(*case, implementation="reference", **options)
    actual = value_and_gradients(*case, dtype=jnp.bfloat16, implementation="pallas", **options)
    assert_close(actual, exact, 2e-2)


def test_large_scores_do_not_overflow():
    assert_large_scores_do_not_overflow("tpu_interpret", *make_case(2, 16, 9))


@pytest.mark.parametrize("batch", [4, 20])
def test_shapes_that_do_not_tile_fall_back(batch):
    case = make_case(2, 16, 9, batch=batch)
    run = functools.partial(poca, key_ratio=0.25)
    assert not _uses_kernel(functools.partial(run, implementation="pallas"), *case)
    expected = run(*case, implementation="reference")
    np.testing.assert_allclose(run(*case, implementation="pallas"), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=f"multiple of 8 images a device, got {batch}"):
        run(*case, implementation="tpu_interpret")


def test_weights_that_do_not_fit_fall_back():
    features, query, value = make_case(4, 1024, 1)
    huge = [
        Projection(*(jax.ShapeDtypeStruct((*x.shape[:-1], 21843), x.dtype) for x in weights))
        for weights in (query, value)
    ]
    run = functools.partial(poca, key_ratio=0.25)
    assert not _uses_kernel(functools.partial(run, implementation="pallas"), features, *huge)
    with pytest.raises(InputError, match="do not fit into VMEM"):
        jax.make_jaxpr(functools.partial(run, implementation="tpu_interpret"))(features, *huge)


@pytest.mark.parametrize(
    ("kind", "mebibytes", "kernel"),
    [
        ("TPU v5 lite", 128, True),
        ("TPU v5", 64, True),
        ("TPU v4", 16, False),
        ("TPU v99", 16, False),
        ("cpu", 128, True),
    ],
)
def test_kernels_fit_the_chip(kind, mebibytes, kernel):
    features, query, value = make_case(4, 2048, 1000, batch=16)
    with jax.sharding.use_abstract_mesh(tpu_mesh(kind)):
        assert vmem_limit() == int(0.78 * mebibytes * 2**20)
        features = jax.ShapeDtypeStruct((64, 7, 7, 2048), jnp.bfloat16)
        run = functools.partial(poca, key_ratio=0.25, spatial_major=True)
        assert _uses_kernel(run, features, query, value) == kernel


def test_second_derivatives_are_refused():
    assert_refuses_second_derivatives("tpu_interpret", *make_case(2, 16, 9))


def test_sharded_it_is_the_whole():
    subprocess.run(
        [sys.executable, "-m", "tests.heads.noah.sharded_head"],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"},
        cwd=ROOT,
        check=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "channels", "options"),
    [
        (32, 128, dict(key_ratio=0.25)),
        (32, 128, dict(key_ratio=0.25, dropout=0.1)),
        (32, 128, dict(key_ratio=0.25, spatial_major=True)),
        (128, 64, dict(key_ratio=0.5)),  # 8 channels of a block and part, side by side
        (128, 576, dict(key_ratio=0.5)),
    ],
    ids=["", "dropout", "map", "images last", "wide, images last"],
)
@pytest.mark.parametrize("topology", ["v5e:1x1", "v5e:2x2", "v6e:1x1", "v5p:2x2x1", "v7x:2x2x1"])
def test_it_compiles_for_tpus(topology, images, channels, options):
    pytest.importorskip("libtpu")
    mesh = targets.topology_mesh(topology)
    key_ratio = options["key_ratio"]
    case = make_case(4, channels, 1000, batch=1, key_ratio=key_ratio)

    def step(key, *operands):
        def loss(*operands):
            return (poca(*operands, dropout_key=key, **options) ** 2).sum()

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(loss, argnums=(0, 1, 2))(*operands)

    def put(tree, *axes):
        sharding = NamedSharding(mesh, jax.P(*axes))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    features = jax.ShapeDtypeStruct((images * mesh.size, 7, 7, channels), jnp.bfloat16)
    key = put(jax.eval_shape(lambda: jax.random.key(0)))
    compiled = jax.jit(step).lower(key, put(features, "data"), *put(case[1:])).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(dropout=0.1), dict(spatial_major=True)])
@pytest.mark.parametrize("axes", ["explicit", "manual"])
def test_it_compiles_for_tpus_under_other_axes(axes, options):
    pytest.importorskip("libtpu")
    devices = targets.topology_mesh("v5e:2x2").devices
    mesh = jax.sharding.Mesh(devices, ("data",), axis_types=(AxisType.Explicit,))
    case = make_case(4, 128, 1000, batch=1)

    def step(*operands):
        def loss(*operands):
            key = jax.random.key(0)
            return (poca(*operands, key_ratio=0.25, dropout_key=key, **options) ** 2).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(*operands)

    def on_mesh(*operands):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            if axes == "explicit":
                return step(*operands)
            specs = jax.P("data"), jax.P(), jax.P()
            return jax.shard_map(step, in_specs=specs, out_specs=specs)(*operands)

    def put(tree, *axes):
        sharding = NamedSharding(mesh, jax.P(*axes))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    features = jax.ShapeDtypeStruct((32 * mesh.size, 7, 7, 128), jnp.bfloat16)
    compiled = jax.jit(on_mesh).lower(put(features, "data"), *put(case[1:])).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 2
