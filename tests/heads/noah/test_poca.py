"""The head: golden cases of the original, algebra, attention on request, bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax.heads.noah import NOAH, Projection, attention, contributions, poca
from noah_jax.parity.__main__ import main as parity


def _weights(head_num, in_query, in_value, num_classes, seed=0):
    random = np.random.RandomState(seed)

    def projection(inputs):
        kernel = random.standard_normal((head_num, inputs, num_classes))
        bias = random.standard_normal((head_num, num_classes))
        return Projection(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))

    return projection(in_query), projection(in_value)


def _features(*shape, seed=7):
    return jnp.asarray(np.random.RandomState(seed).standard_normal(shape), jnp.float32)


@pytest.mark.optimised
def test_golden_cases_of_the_original(golden, capsys):
    assert parity(["--golden", str(golden), "--head"]) == 0
    assert "11 of 11 agree" in capsys.readouterr().out


def test_equals_the_definition_with_biases():
    x = np.asarray(_features(2, 3, 5, 8), np.float64)
    query, value = _weights(2, 2, 2, 6)
    flat = x.reshape(2, 15, 8)
    logits = np.zeros((2, 6))
    for n in range(2):
        q = flat[..., 2 * n : 2 * n + 2] @ np.asarray(query.kernel)[n] + np.asarray(query.bias)[n]
        v = flat[..., 4 + 2 * n : 6 + 2 * n] @ np.asarray(value.kernel)[n]
        v = v + np.asarray(value.bias)[n]
        weights = np.exp(q - q.max(1, keepdims=True))
        logits += (weights / weights.sum(1, keepdims=True) * v).sum(1)
    np.testing.assert_allclose(poca(x.astype(np.float32), query, value), logits, rtol=1e-5)


@pytest.mark.parametrize("spatial", [(), (12,), (3, 4), (2, 2, 3)])
def test_any_number_of_spatial_dimensions(spatial):
    query, value = _weights(2, 2, 2, 6)
    x = _features(2, *spatial, 8)
    positions = int(np.prod(spatial))
    expected = poca(x.reshape(2, positions, 8), query, value)
    np.testing.assert_allclose(poca(x, query, value), expected, rtol=1e-6)
    classes = jnp.array([1, 4])
    assert attention(x, query, classes).shape == (2, 2, 2, *spatial)


def test_query_bias_has_no_gradient():
    query, value = _weights(2, 2, 2, 6)
    grad = jax.grad(lambda q: (poca(_features(2, 9, 8), q, value) ** 2).sum())(query)
    assert not np.any(grad.bias)
    assert np.any(grad.kernel)


def test_dropout_keeps_the_mean_and_includes_the_bias():
    query, value = _weights(2, 2, 2, 6)
    x = _features(2, 9, 8)
    clean = poca(x, query, value)
    dropped = jax.vmap(lambda k: poca(x, query, value, dropout=0.4, dropout_key=k))(
        jax.random.split(jax.random.key(1), 4000)
    )
    error = np.abs(dropped.mean(0) - clean) / (dropped.std(0) / np.sqrt(4000))
    assert np.all(dropped.std(0) > 0.05)
    assert np.max(error) < 4.5
    np.testing.assert_array_equal(poca(x, query, value, dropout=0.4), clean)


@pytest.mark.parametrize("head_split", [True, False])
@pytest.mark.parametrize("kv_split", [True, False])
def test_attention_of_chosen_classes(head_split, kv_split):
    head = NOAH(16, 9, 2, 0.25, head_split=head_split, kv_split=kv_split, rngs=nnx.Rngs(params=0))
    x = _features(3, 4, 5, 16)
    own = np.array([[0, 1], [2, 3], [8, 8]])
    choices = np.arange(9), np.array([7, 2]), own
    every, some, each = jax.jit(lambda x: [head.attention(x, chosen) for chosen in choices])(x)
    assert every.shape == (3, 2, 9, 4, 5)
    np.testing.assert_allclose(every.sum((-1, -2)), 1, rtol=1e-5)
    np.testing.assert_allclose(some, every[:, :, [7, 2]], rtol=1e-5)
    expected = np.stack([every[i][:, own[i]] for i in range(3)])
    np.testing.assert_allclose(each, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (8, 5)])
@pytest.mark.parametrize("parts", [1, 2])
def test_chosen_classes_cost_their_own_products(parts, shape):
    x, weights = _features(8, 14, 14, 64), _weights(4, 8, 8, 1000)
    function = (attention, contributions)[parts - 1]
    classes = jnp.zeros(shape, jnp.int32)
    compiled = jax.jit(function).lower(x, *weights[:parts], classes).compile()
    outputs = 8 * 4 * 5 * 196
    softmax = 12 * outputs
    assert compiled.cost_analysis()["flops"] < 2 * 8 * outputs * parts + softmax
    scores_of_all = 4 * outputs * 1000 // 5
    assert compiled.memory_analysis().temp_size_in_bytes < scores_of_all / 20


def test_attention_weighs_the_logits():
    query, value = _weights(2, 2, 2, 6)
    x = _features(2, 9, 8)
    weights = attention(x, query, jnp.arange(6))
    values = jnp.einsum("blnd,ndk->bnkl", x[..., 4:].reshape(2, 9, 2, 2), value.kernel)
    logits = (weights * (values + value.bias[..., None])).sum((1, 3))
    np.testing.assert_allclose(logits, poca(x, query, value), rtol=1e-5)


def test_bfloat16_gives_float32_logits():
    head = NOAH(16, 9, dtype=jnp.bfloat16, rngs=nnx.Rngs(params=0))
    exact = NOAH(16, 9, rngs=nnx.Rngs(params=0))
    x = _features(3, 4, 5, 16)
    logits = head(x, train=False)
    assert logits.dtype == jnp.float32
    assert head.attention(x, jnp.arange(2)).dtype == jnp.float32
    np.testing.assert_allclose(logits, exact(x, train=False), atol=0.1)


def test_initialiser_is_kaiming_normal_fan_out():
    head = NOAH(512, 100, 4, 0.5, rngs=nnx.Rngs(params=0))
    for part in (head.query, head.value):
        np.testing.assert_allclose(part.kernel[...].std(), np.sqrt(2 / 400), rtol=0.02)
        assert abs(float(part.kernel[...].mean())) < 2e-3
        assert not np.any(part.bias[...])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(in_features=64, num_classes=0), ["num_classes", "at least 1"]),
        (dict(in_features=64, num_classes=5, head_num=3), ["head_num=3", "1, 2, 4, 8, 16, 32"]),
        (dict(in_features=64, num_classes=5, head_num=0), ["head_num", "at least 1"]),
        (dict(in_features=64, num_classes=5, key_ratio=0.0), ["key_ratio", "(0, 1)"]),
        (dict(in_features=64, num_classes=5, key_ratio=1.0), ["key_ratio", "(0, 1)"]),
        (dict(in_features=64, num_classes=5, key_ratio=-0.5), ["key_ratio", "(0, 1)"]),
        (dict(in_features=4, num_classes=5, key_ratio=0.1), ["key_ratio", "1/4"]),
        (dict(in_features=64, num_classes=5, key_ratio=0.1), ["head_num=4", "6 query", "1, 2"]),
        (dict(in_features=63, num_classes=5), ["head_num=4", "31 query", "32 value"]),
        (dict(in_features=64, num_classes=5, dropout=1.0), ["dropout", "[0, 1)"]),
    ],
)
def test_bad_arguments_name_what_fits(arguments, words):
    with pytest.raises(ValueError) as raised:
        NOAH(**arguments, rngs=nnx.Rngs(params=0))
    assert all(word in str(raised.value) for word in words), raised.value


def test_bad_inputs():
    query, value = _weights(2, 2, 2, 6)
    with pytest.raises(ValueError, match=r"query.kernel must be \[head_num=2, in_features=3"):
        poca(_features(2, 9, 12), query, value)
    with pytest.raises(ValueError, match="features must be"):
        poca(_features(8), query, value)
    with pytest.raises(ValueError, match="no positions"):
        poca(jnp.zeros((2, 0, 8)), query, value)
    with pytest.raises(ValueError, match=r"0\.\.5, got 3\.\.6"):
        attention(_features(2, 9, 8), query, jnp.array([3, 6]))
    with pytest.raises(ValueError, match="classes must be integers"):
        attention(_features(2, 9, 8), query, jnp.array([0.5]))
    head = NOAH(8, 6, 2, dropout=0.1, rngs=nnx.Rngs(params=0))
    with pytest.raises(ValueError, match="random key"):
        head(_features(2, 9, 8), train=True)
