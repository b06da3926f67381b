"""The convolutions and the layers and activations that the mobile networks add."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax.nn.convolutions import depthwise_conv, native_conv, shifted_conv
from noah_jax.nn.layers import DepthwiseConv, conv, hard_sigmoid, hard_swish, relu6


def assert_same_numbers(forms, x_shape, kernel_shape, out_shape):
    """Values and gradients of all `forms(x, kernel)` agree with the first one's."""
    random = np.random.default_rng(0)
    draw = lambda shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731

    @jax.jit
    def run(x, kernel, cotangent):
        pairs = [jax.vjp(form, x, kernel) for form in forms]
        return [(out, *pullback(cotangent)) for out, pullback in pairs]

    expected, *others = run(draw(x_shape), draw(kernel_shape), draw(out_shape))
    for other in others:
        for ours, theirs in zip(other, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", [(7, 10), (1, 3)])
def test_depthwise_forms_give_the_same_numbers(size, stride, shape):
    forms = [
        functools.partial(form, stride=stride)
        for form in (native_conv, shifted_conv, depthwise_conv)
    ]
    out = tuple(-(-n // stride) for n in shape)
    assert_same_numbers(forms, (2, *shape, 6), (size, size, 1, 6), (2, *out, 6))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "channels"), [(1, 6), (3, 3)])
def test_forms_behind_conv_give_the_same_numbers(size, channels, stride):
    layer = conv(channels, 8, size, stride=stride, use_bias=True, rngs=nnx.Rngs(0))
    assert layer.conv_general_dilated is not jax.lax.conv_general_dilated

    graph, state = nnx.split(layer)

    def with_kernel(x, kernel):
        return nnx.merge(graph, {**state, "kernel": state["kernel"].replace(kernel)})(x)

    forms = [functools.partial(native_conv, stride=stride), with_kernel]
    out = (2, -(-7 // stride), -(-10 // stride), 8)
    assert_same_numbers(forms, (2, 7, 10, channels), layer.kernel.shape, out)


@pytest.mark.parametrize("differentiate", [False, True])
def test_only_the_platforms_own_implementation_is_lowered(differentiate):
    def function(x, kernel):
        return jnp.square(depthwise_conv(x, kernel)).sum()

    function = jax.jit(jax.grad(function, (0, 1)) if differentiate else function)
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    traced = function.trace(x, jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32))
    for platform, convolutions in (("cpu", 0), ("cuda", 1), ("tpu", 1)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        found = len(re.findall(r"stablehlo\.convolution", text))
        assert found == convolutions * (3 if differentiate else 1), platform


def test_layer_equals_the_grouped_convolution_and_its_kernel():
    layer = DepthwiseConv(6, 3, stride=2, rngs=nnx.Rngs(0))
    grouped = nnx.Conv(
        6,
        6,
        (3, 3),
        strides=2,
        padding=1,
        feature_group_count=6,
        use_bias=False,
        rngs=nnx.Rngs(1),
    )
    assert layer.kernel.shape == grouped.kernel.shape == (3, 3, 1, 6)
    grouped.kernel[...] = layer.kernel[...]
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 6))
    np.testing.assert_allclose(layer(x), grouped(x), atol=1e-6)


def test_bfloat16_sums_in_float32():
    layer = DepthwiseConv(6, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 9, 9, 6)).astype(jnp.bfloat16)
    out = layer(x)
    kernel = layer.kernel[...].astype(jnp.bfloat16).astype(jnp.float32)
    exact = shifted_conv(x.astype(jnp.float32), kernel, 1)
    assert layer.kernel.dtype == jnp.float32 and out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_relu6_and_its_kin_have_pytorchs_gradient_at_the_bounds():
    x = jnp.array([-1.0, 0.0, 2.0, 6.0, 7.0])
    np.testing.assert_array_equal(relu6(x), [0, 0, 2, 6, 6])
    np.testing.assert_array_equal(jax.vmap(jax.grad(relu6))(x), [0, 0, 1, 0, 0])
    x = jnp.array([-4.0, -3.0, 0.0, 3.0, 4.0])
    np.testing.assert_allclose(hard_sigmoid(x), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(jax.vmap(jax.grad(hard_sigmoid))(x), [0, 0, 1 / 6, 0, 0])
    np.testing.assert_allclose(hard_swish(x), [0, 0, 0, 3, 4])
    assert relu6(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert np.isnan(relu6(jnp.array(jnp.nan)))
