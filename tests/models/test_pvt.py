"""PVT: parameter counts, class token, interpolated positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.models.pvt.modeling import resize_positions
from tests.models.torch_rules import check_counts
from tests.models.vit_checks import (
    quick_jit,
    random_images,
    random_params,
    small_model,
)

NUM_PARAMS = {
    "noah_pvt_huge_v2": 304_950_976,
    "noah_pvt_large": 61_375_296,
    "noah_pvt_medium": 44_214_080,
    "noah_pvt_small": 24_491_840,
    "noah_pvt_tiny": 13_235_264,
    "noah_pvt_tiny_050": 3_549_632,
    "noah_pvt_tiny_075": 7_624_448,
    "pvt_huge_v2": 304_945_512,
    "pvt_large": 61_369_320,
    "pvt_medium": 44_208_104,
    "pvt_small": 24_485_864,
    "pvt_tiny": 13_229_288,
    "pvt_tiny_050": 3_543_144,
    "pvt_tiny_075": 7_618_216,
}


def test_counts():
    check_counts("pvt", NUM_PARAMS)


def test_class_token_joins_the_last_stage():
    model = small_model("pvt", "linear")
    params, stats = model.abstract()
    assert params["cls_token"].shape == (1, 1, 32)
    shapes = [params[f"pos_embed{stage}"].shape for stage in (1, 2, 3, 4)]
    assert shapes == [(1, 256, 8), (1, 64, 16), (1, 16, 24), (1, 5, 32)]
    assert jax.eval_shape(model.features, params, stats, random_images()).shape == (2, 2, 2, 32)

    model = small_model("pvt", "noah")
    params, stats = model.abstract()
    assert "cls_token" not in params
    assert params["pos_embed4"].shape == (1, 4, 32)
    assert jax.eval_shape(model.features, params, stats, random_images()).shape == (2, 2, 2, 32)


def test_reduction_stops_at_the_last_stage():
    params, _ = small_model("pvt").abstract()
    shapes = [params[f"block{stage}"]["0"]["attn"]["sr"]["kernel"].shape for stage in (1, 2, 3)]
    assert shapes == [(8, 8, 8, 8), (4, 4, 16, 16), (2, 2, 24, 24)]
    assert sorted(params["block4"]["0"]["attn"]) == ["kv", "proj", "q"]


@pytest.mark.parametrize("head", ["linear", "noah"])
def test_other_image_sizes(head):
    """Also where a later stage has as many positions as stage 1 was made for."""
    model = small_model("pvt", head, image_size=(32, 32))
    params, stats = model.abstract()
    for height, width in [(32, 32), (64, 64), (256, 256), (32, 96)]:
        images = random_images(height=height, width=width)
        features = jax.eval_shape(model.features, params, stats, images)
        assert features.shape == (2, height // 32, width // 32, 32)
    with pytest.raises(ValueError, match=r"\(64, 48\).*multiples of 32"):
        jax.eval_shape(model.features, params, stats, random_images(height=64, width=48))


def test_interpolated_positions_are_used():
    """A model made for one size, fed another, is the model of that size with resized positions."""
    model = small_model("pvt", "linear", image_size=(32, 64), depths=(0, 0, 0, 0))
    larger = small_model("pvt", "linear", image_size=(96, 64), depths=(0, 0, 0, 0))
    params = random_params(model)
    images = random_images(height=96, width=64)
    features = quick_jit(model.features)(params, {}, images)
    for stage, stride in enumerate((4, 8, 16, 32), start=1):
        name = f"pos_embed{stage}"
        grids = (32 // stride, 64 // stride), (96 // stride, 64 // stride)
        token, positions = jnp.split(params[name], [stage == 4], axis=1)
        resized = resize_positions(positions, *grids).reshape(1, -1, positions.shape[-1])
        params[name] = jnp.concatenate([token, resized], axis=1)
    expected = quick_jit(larger.features)(params, {}, images)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((2, 3), [[0, 1, 4], [9, 16, 25]]),
        ((3, 4), [[0, 0.625, 2.125, 4], [4.5, 7, 10.75, 14.5], [9, 13.375, 19.375, 25]]),
        ((1, 2), [[5.5, 13]]),
    ],
)
def test_resize_positions_is_pytorch_bilinear(size, expected):
    """Values of torch.nn.functional.interpolate(x, size, mode="bilinear")."""
    positions = jnp.arange(6.0).reshape(1, 6, 1) ** 2
    resized = resize_positions(positions, (2, 3), size)
    np.testing.assert_allclose(resized[0, ..., 0], expected, rtol=1e-6)


def test_epsilons():
    model = small_model("pvt")
    module = model._merge(*model.abstract())
    assert module.norm.epsilon == 1e-6
    assert module.patch_embed1.norm.epsilon == 1e-5
    assert module.block1[0].norm1.epsilon == module.block1[0].norm2.epsilon == 1e-6
    assert module.block1[0].attn.norm.epsilon == 1e-5
