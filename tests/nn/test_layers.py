"""Layers against the formulas of PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from noah_jax.nn.layers import BatchNorm, conv, max_pool, torch_default_kernel


def _images(*shape, seed=0):
    return np.float32(3 + 2 * np.random.RandomState(seed).standard_normal(shape))


@pytest.mark.parametrize(("group", "devices"), [(None, 1), (12, 1), (4, 1), (3, 1), (2, 4), (4, 2)])
def test_batch_norm_follows_the_formula_with_groups(group, devices, monkeypatch):
    # Groups of 2 lie across the borders of devices that have 3 images each, groups of 4 of 6.
    mesh = AbstractMesh((devices,), ("data",), (AxisType.Auto,))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    x = _images(12, 5, 3, 6)
    layer = BatchNorm(6, batch_norm_group=group)
    layer.scale[...] = jnp.linspace(0.5, 2, 6)
    layer.bias[...] = jnp.linspace(-1, 1, 6)
    layer.mean[...] = jnp.full(6, 0.3)
    layer.var[...] = jnp.full(6, 1.7)
    out = layer(jnp.asarray(x), train=True)

    size = group or 12
    groups = x.astype(np.float64).reshape(-1, size, 5, 3, 6)
    mean = groups.mean((1, 2, 3), keepdims=True)
    biased = groups.var((1, 2, 3), keepdims=True)
    normal = ((groups - mean) / np.sqrt(biased + 1e-5)).reshape(x.shape)
    expected = normal * np.linspace(0.5, 2, 6) + np.linspace(-1, 1, 6)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    unbiased = groups.var((1, 2, 3), ddof=1)
    np.testing.assert_allclose(
        layer.mean[...], 0.9 * 0.3 + 0.1 * mean.mean((0, 1, 2, 3)), rtol=1e-6
    )
    np.testing.assert_allclose(layer.var[...], 0.9 * 1.7 + 0.1 * unbiased.mean(0), rtol=1e-6)


@pytest.mark.parametrize(("group", "devices"), [(24, 1), (8, 1), (4, 2), (8, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batch_norms_gradient_is_its_formulas(group, devices, dtype, monkeypatch):
    # Groups of 8 lie across the borders of two devices with 12 images each, of 4 not.
    mesh = AbstractMesh((devices,), ("data",), (AxisType.Auto,))
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    x = jnp.asarray(_images(24, 5, 3, 6), dtype)
    slope = jnp.asarray(_images(24, 5, 3, 6, seed=1))
    weights = jnp.linspace(0.5, 2, 6), jnp.linspace(-1, 1, 6)

    def layer(x, scale, bias):
        module = BatchNorm(6, batch_norm_group=group)
        module.scale[...], module.bias[...], module.mean[...] = scale, bias, jnp.full(6, 2.5)
        return jnp.sin(module(x, train=True))

    def formula(x, scale, bias):
        groups = x.astype(jnp.float32).reshape(-1, group, 5, 3, 6)
        centred = groups - groups.mean((1, 2, 3), keepdims=True)
        var = jnp.square(centred).mean((1, 2, 3), keepdims=True)
        return jnp.sin((centred / jnp.sqrt(var + 1e-5)).reshape(x.shape) * scale + bias)

    @functools.partial(jax.jit, static_argnums=0)
    def both(form):
        out, pullback = jax.vjp(form, x, *weights)
        return out, pullback(slope)

    (out, own), (expected, exact) = both(layer), both(formula)
    np.testing.assert_allclose(out, expected, atol=3e-6)
    for ours, theirs in zip(own, exact, strict=True):
        ours, theirs = (np.asarray(y, np.float32) for y in (ours, theirs))
        # A gradient of bfloat16 values is itself rounded to them.
        tolerance = 2**-8 if dtype == "bfloat16" else 2e-6
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def test_batch_norms_gradient_has_a_gradient():
    x = jnp.asarray(_images(4, 3, 6))

    @functools.partial(jax.jit, static_argnums=0)
    def curvature(form):
        slope = jax.grad(lambda x: jnp.sin(3 * form(x)).sum())
        return jax.grad(lambda x: jnp.sin(slope(x)).sum())(x)

    def formula(x):
        return (x - x.mean((0, 1))) / jnp.sqrt(x.var((0, 1)) + 1e-5)

    ours = curvature(lambda x: BatchNorm(6)(x, train=True))
    np.testing.assert_allclose(ours, curvature(formula), rtol=1e-4, atol=1e-4)


def test_batch_norm_evaluates_with_running_statistics():
    x = _images(4, 2, 2, 3)
    layer = BatchNorm(3, batch_norm_group=2)
    layer.mean[...] = jnp.array([1.0, 2.0, 3.0])
    layer.var[...] = jnp.array([4.0, 1.0, 0.25])
    out = layer(jnp.asarray(x), train=False)
    expected = (x - [1, 2, 3]) / np.sqrt(np.array([4, 1, 0.25]) + 1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.mean[...], [1, 2, 3])


def test_batch_norm_wants_a_mode_and_a_fitting_group():
    layer = BatchNorm(3, batch_norm_group=3)
    with pytest.raises(TypeError, match="train"):
        layer(jnp.zeros((6, 2, 2, 3)))
    with pytest.raises(ValueError, match="batch_norm_group=3 does not divide the batch of 8"):
        layer(jnp.zeros((8, 2, 2, 3)), train=True)
    with pytest.raises(ValueError, match="more than one value"):
        BatchNorm(3, batch_norm_group=1)(jnp.zeros((8, 1, 1, 3)), train=True)
    with pytest.raises(ValueError, match="at least 1 image"):
        BatchNorm(3, batch_norm_group=0)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (7, 2), (1, 2)])
def test_convolution_pads_both_sides(size, stride):
    x = _images(2, 8, 9, 3)
    layer = conv(3, 4, size, stride=stride, rngs=nnx.Rngs(params=0))
    kernel = np.asarray(layer.kernel[...], np.float64)
    pad = size // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
    expected = np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-4)


def test_max_pool_pads_both_sides():
    x = _images(1, 6, 6, 1) - 10
    out = max_pool(jnp.asarray(x), 3, 2, 1)
    assert out.shape == (1, 3, 3, 1)
    assert out[0, 0, 0, 0] == x[0, :2, :2, 0].max()
    assert out[0, 1, 2, 0] == x[0, 1:4, 3:6, 0].max()


def test_initialisers():
    kernel = conv(64, 128, 3, rngs=nnx.Rngs(params=0)).kernel[...]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (128 * 9)), rtol=0.02)
    assert np.abs(kernel).max() > 3.5 * kernel.std()  # not truncated
    uniform = torch_default_kernel()(jax.random.key(0), (3, 3, 64, 128), jnp.float32)
    bound = 1 / np.sqrt(64 * 9)
    assert 0.999 * bound < np.abs(uniform).max() <= bound
    np.testing.assert_allclose(uniform.std(), bound / np.sqrt(3), rtol=0.01)
