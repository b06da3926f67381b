"""The head in chunks against the definition: values, gradients, dropout, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.heads.noah import Projection, poca


def _case(head_num, channels, num_classes, *, head_split=True, kv_split=True, shape=(3, 4, 5)):
    """Makes features and weights of a head with r = 1/4."""
    random = np.random.RandomState(0)
    parts = (channels // 4, channels - channels // 4) if kv_split else (channels, channels)
    weights = []
    for part in parts:
        inputs = part // head_num if head_split else part
        weights.append(
            Projection(
                random.standard_normal((head_num, inputs, num_classes)).astype(np.float32),
                random.standard_normal((head_num, num_classes)).astype(np.float32),
            )
        )
    return random.standard_normal((*shape, channels)).astype(np.float32), *weights


def _value_and_gradients(features, query, value, *, dtype=jnp.float32, **arguments):
    """Computes logits, and gradients of a loss that weighs every logit differently."""

    def loss(features, query, value):
        logits = poca(features.astype(dtype), query, value, key_ratio=0.25, **arguments)
        weights = jnp.sin(jnp.arange(logits.size)).reshape(logits.shape)
        return (logits * weights).sum(), logits

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    gradients, logits = run(features, query, value)
    return logits, gradients


def _assert_close(actual, expected, tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        scale = max(float(np.abs(b).max()), 1e-6)
        assert float(np.abs(np.asarray(a) - np.asarray(b)).max()) / scale < tolerance


@pytest.fixture(params=["cpu", "chunked"])
def cut(request):
    """Gives options of `poca` for chunks of so many classes, on CPUs and on accelerators."""

    def options(classes):
        block_sizes = {
            "cpu": {"scores": 0, "tile": classes, "fewest_classes": classes},
            "chunked": {"classes": classes},
        }
        return {"implementation": request.param, "block_sizes": block_sizes[request.param]}

    return options


def _both(case, options, **switches):
    """Computes values and gradients in chunks and by the definition."""
    return (
        _value_and_gradients(*case, **options, **switches),
        _value_and_gradients(*case, implementation="reference", **switches),
    )


@functools.cache
def _definition(head_split, kv_split):
    """Computes values and gradients by the definition."""
    switches = dict(head_split=head_split, kv_split=kv_split)
    case = _case(2, 16, 11, **switches)
    return _value_and_gradients(*case, implementation="reference", **switches)


# Chunks of 4 classes: the last one is filled or overlaps.
_CHUNKS = [(head, kv, 4) for head in (True, False) for kv in (True, False)]
_CHUNKS += [(True, True, 10**6)]  # all at once


def _slow(cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("head_split", "kv_split", "chunk"),
    [
        *_CHUNKS,
        *_slow((head, kv, 1) for head, kv, _ in _CHUNKS[:4]),  # one class each
        *_slow((head, kv, 10**6) for head, kv, _ in _CHUNKS[1:4]),
    ],
)
def test_values_and_gradients_are_those_of_the_definition(cut, head_split, kv_split, chunk):
    switches = dict(head_split=head_split, kv_split=kv_split)
    actual = _value_and_gradients(*_case(2, 16, 11, **switches), **cut(chunk), **switches)
    expected = _definition(head_split, kv_split)
    assert np.abs(expected[1][0]).max() > 0.1
    _assert_close(actual, expected, 2e-6)


def test_bfloat16_gradients(cut):
    case = _case(2, 32, 20)
    _, exact = _value_and_gradients(*case, implementation="reference")
    logits, gradients = _value_and_gradients(*case, dtype=jnp.bfloat16, **cut(7))
    assert logits.dtype == jnp.float32
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
        assert np.linalg.norm(a - b) <= 2e-2 * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("head_split", "dropout"),
    [(True, 0.0), (False, 0.4), *_slow([(False, 0.0), (True, 0.4)])],
)
def test_float64(cut, head_split, dropout):
    features, *weights = _case(2, 16, 11, head_split=head_split)
    with jax.enable_x64(True):
        case = jax.tree.map(np.float64, (features, *weights))
        switches = dict(head_split=head_split, dropout=dropout, dropout_key=jax.random.key(1))
        actual, expected = _both(case, cut(4), dtype=jnp.float64, **switches)
        assert actual[0].dtype == jnp.float64
        _assert_close(actual, expected, 1e-13)


def test_large_scores_do_not_overflow():
    features, query, value = _case(2, 16, 9)
    query = query._replace(kernel=100 * query.kernel)
    actual, expected = _both((features, query, value), dict(implementation="xla"))
    assert np.isfinite(actual[0]).all()
    _assert_close(actual, expected, 1e-4)


def test_second_derivatives(cut):
    features, query, value = _case(2, 16, 9)

    def penalty(kernel, options):
        def loss(features):
            weights = query._replace(kernel=kernel)
            return (poca(features, weights, value, key_ratio=0.25, **options) ** 2).sum()

        return (jax.grad(loss)(features) ** 2).sum()

    actual, expected = (
        jax.jit(jax.grad(functools.partial(penalty, options=options)))(query.kernel)
        for options in (cut(4), dict(implementation="reference"))
    )
    _assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("head_split", [True, False])
def test_dropout_is_that_of_the_definition(cut, head_split):
    case = _case(2, 16, 9, head_split=head_split)
    switches = dict(dropout=0.4, dropout_key=jax.random.key(1), head_split=head_split)
    actual, expected = _both(case, cut(4), **switches)
    _assert_close(actual, expected, 2e-6)


def test_dropout_has_one_mask_in_both_directions(cut):
    features, query, value = jax.tree.map(jnp.asarray, _case(2, 16, 9))
    options = dict(key_ratio=0.25, dropout=0.4, dropout_key=jax.random.key(3), **cut(4))

    @jax.jit
    def logit(bias):
        return poca(features, query, value._replace(bias=bias), **options).sum()

    # The logits are linear in the bias, so the gradient tells every difference exactly.
    gradient = jax.grad(logit)(value.bias)
    step = np.random.RandomState(1).standard_normal(value.bias.shape).astype(np.float32)
    change = logit(value.bias + step) - logit(value.bias)
    np.testing.assert_allclose((gradient * step).sum(), change, rtol=1e-4)
    assert gradient.std() > 0.1  # without dropout every element is the number of images


@pytest.mark.parametrize("shape", [(32, 14, 14, 192), (32, 7, 7, 2048)])  # DeiT-Tiny, ResNet-50
def test_memory_is_a_tenth_of_the_whole_arrays(shape):
    features, query, value = _case(4, shape[-1], 1000, shape=shape[:-1])

    def temporaries(form):
        def loss(*operands):
            return (poca(*operands, key_ratio=0.25, implementation=form) ** 2).sum()

        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        return step.lower(features, query, value).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("xla") < temporaries("reference") / 10


def test_auto_takes_the_chunks_on_cpus():
    case = _case(4, 64, 1000, shape=(8, 14, 14))
    compiled = jax.jit(functools.partial(poca, key_ratio=0.25)).lower(*case).compile()
    whole = 8 * 4 * 1000 * 196 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 2


def test_no_images():
    features, query, value = _case(2, 16, 9)
    assert poca(features[:0], query, value, key_ratio=0.25).shape == (0, 9)
