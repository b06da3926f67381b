"""How the TPU kernels spread their work changes nothing: parts of the positions, cores, tiles."""

import jax
import jax.numpy as jnp
import pytest

from noah_jax.heads.noah import tpu_tiles
from noah_jax.heads.noah.operands import ChannelSplit, PocaShape
from noah_jax.heads.noah.tpu import tpu_plan
from noah_jax.heads.noah.tpu_map import tpu_map_plan
from noah_jax.heads.noah.tpu_tiles import vmem_limit
from tests.heads.noah.kernel_checks import (
    assert_close,
    make_case,
    tpu_mesh,
    value_and_gradients,
)

MAP = dict(spatial_major=True, block_sizes={"vmem": 2_300_000, "cores": 2})


@pytest.mark.parametrize(
    ("implementation", "options", "spatial", "most_parts"),
    [
        ("tpu_interpret", dict(dropout=0.4, dropout_key=jax.random.key(5)), (2, 8), 2),
        ("tpu_interpret", dict(head_split=False, block_sizes={"cores": 2}), (3, 5), 9),
        ("tpu_map_interpret", MAP, (3, 4), 9),
    ],
)
def test_parts_of_the_positions_are_the_whole(
    implementation, options, spatial, most_parts, monkeypatch
):
    monkeypatch.setattr(tpu_tiles, "_PART_ROWS", 64)
    monkeypatch.setattr(tpu_tiles, "_MOST_PARTS", most_parts)
    switches = {key: value for key, value in options.items() if key == "head_split"}
    case = make_case(2, 16, 130, batch=32, spatial=spatial, **switches)
    actual = value_and_gradients(*case, implementation=implementation, **options)
    options = {key: value for key, value in options.items() if key != "block_sizes"}
    expected = value_and_gradients(*case, implementation="reference", **options)
    assert_close(actual, expected, 2e-6)


def _shape(images, side):
    split = ChannelSplit(0.5)
    return PocaShape(images, (side, side), 192, 4, 1000, jnp.dtype("bfloat16"), split)


@pytest.mark.parametrize(
    ("images", "side"), [(128, 14), (16, 14), (48, 7), (16, 1), (8, 14), (32, 24)]
)
def test_parts_fill_whole_registers(images, side):
    plan = tpu_plan(_shape(images, side), interpret=True)
    ends = [part.start + part.positions for part in plan.parts]
    assert [part.start for part in plan.parts] == [0, *ends[:-1]]
    assert ends[-1] * plan.bodies == side**2
    inner = ends if plan.bodies > 1 else ends[:-1]
    assert all(end * plan.images % 128 == 0 for end in inner)
    assert len(ends) <= tpu_tiles._MOST_PARTS
    rows = [part.positions * plan.images for part in plan.parts]
    assert max(rows) <= max(1.5 * tpu_tiles._PART_ROWS, 128)


def test_the_kernel_leaves_vmem_to_xla():
    shapes = [_shape(images, 14) for images in (8, 128)]
    asked = [tpu_plan(shape, interpret=True).vmem for shape in shapes]
    assert asked[0] < asked[1] < vmem_limit() / 2
    small = [tpu_plan(shape, interpret=True, vmem=12 * 2**20) for shape in shapes]
    assert small[1].images < 128
    assert all(plan.vmem <= 12 * 2**20 for plan in small)


@pytest.mark.parametrize("cores", [1, 2])
def test_cores_are_those_of_the_device(cores):
    with jax.sharding.use_abstract_mesh(tpu_mesh("TPU v5", cores)):
        assert tpu_plan(_shape(32, 14)).cores == cores
        shape = _shape(32, 14)._replace(spatial_major=True)
        assert tpu_map_plan(shape).cores == cores
