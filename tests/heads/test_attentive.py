"""What every attentive head promises: maps, dropout, dtypes, and weights of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from noah_jax import create_model
from noah_jax.errors import InputError
from noah_jax.heads.class_attention import ClassAttentionHead
from noah_jax.heads.ep import EPHead
from noah_jax.heads.ml_decoder import MLDecoderHead
from noah_jax.heads.registry import never_decay
from noah_jax.heads.simpool import SimPoolHead
from noah_jax.train.optimizer import decay_mask
from tests.heads.quick import draw_head, logits, maps

FEATURES = np.random.RandomState(0).standard_normal((3, 2, 5, 8)).astype(np.float32)
HEADS = {
    "simpool": SimPoolHead,
    "ep": EPHead,
    "ml_decoder": MLDecoderHead,
    "class_attention": ClassAttentionHead,
}
SMALL = {
    "ep": {"queries": 4},
    "ml_decoder": {"groups": 4, "width": 16, "hidden": 12, "num_heads": 2},
    "class_attention": {"head_width": 3, "layer_scale": 1.0},
}


def _head(name, **arguments):
    arguments = SMALL.get(name, {}) | arguments
    return draw_head(lambda: HEADS[name](8, 6, rngs=nnx.Rngs(0), **arguments))


@pytest.mark.parametrize("name", HEADS)
def test_attention_sums_to_one_at_the_maps_positions(name):
    head = _head(name)
    both = maps(head, FEATURES, np.array([5, 0]))
    assert both.dtype == jnp.float32 and both.shape[0] == 3 and both.shape[2:] == (2, 2, 5)
    np.testing.assert_allclose(np.sum(both, (3, 4)), 1, rtol=1e-5)
    each = maps(head, FEATURES, np.array([[0], [5], [1]]))
    np.testing.assert_allclose(np.asarray(each)[1, :, 0], np.asarray(both)[1, :, 0], rtol=1e-5)
    small = maps(_head(name, dtype=jnp.bfloat16), FEATURES, np.array([5, 0]))
    assert small.dtype == jnp.float32
    np.testing.assert_allclose(small, both, atol=0.05)
    with pytest.raises(InputError, match=r"classes must lie in 0\.\.5"):
        head.attention(FEATURES, jnp.array([6]))
    with pytest.raises(InputError, match="needs features"):
        head.attention(FEATURES[..., :4], jnp.array([0]))


@pytest.mark.parametrize("name", HEADS)
def test_any_map_and_float32_logits(name):
    head = _head(name, dtype=jnp.bfloat16)
    exact = _head(name)
    for shape in ((3, 2, 5, 8), (2, 7, 8), (1, 1, 1, 8)):
        features = np.random.RandomState(1).standard_normal(shape).astype(np.float32)
        small = logits(head, features)
        assert small.shape == (shape[0], 6) and small.dtype == jnp.float32
        np.testing.assert_allclose(small, logits(exact, features), atol=0.1)


@pytest.mark.parametrize("name", HEADS)
def test_dropout_needs_a_key_and_follows_it(name):
    head = _head(name, dropout=0.5)
    with pytest.raises(InputError, match="pass key="):
        head(FEATURES, train=True)
    keys = map(jax.random.key, (1, 2, 1))
    first, second, again = (logits(head, FEATURES, train=True, key=key) for key in keys)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)
    with pytest.raises(InputError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        _head(name, dropout=1.0)


def test_ep_is_its_definition():
    head = _head("ep", d_out=2)
    x = np.asarray(FEATURES, np.float64).reshape(3, 10, 8)
    queries, value = (np.asarray(w[...]) for w in (head.queries, head.v.kernel))
    scores = np.exp(np.einsum("md,bld->bml", queries, x) / np.sqrt(8))
    weights = scores / scores.sum(-1, keepdims=True)
    values = (x @ value).reshape(3, 10, 4, 1)
    pooled = np.einsum("bml,blmc->bmc", weights, values).reshape(3, 4)
    expected = pooled @ np.asarray(head.linear.kernel[...]) + np.asarray(head.linear.bias[...])
    np.testing.assert_allclose(logits(head, FEATURES), expected, rtol=1e-4, atol=1e-6)
    actual = np.asarray(maps(head, FEATURES, np.array([2])))[:, :, 0].reshape(3, 4, 10)
    np.testing.assert_allclose(actual, weights, rtol=1e-4)


@pytest.mark.parametrize(("channels", "queries"), [(64, 32), (96, 32), (100, 25), (8, 8), (7, 7)])
def test_ep_takes_queries_that_divide_the_channels(channels, queries):
    head = nnx.eval_shape(lambda: EPHead(channels, 3, rngs=nnx.Rngs(0)))
    assert head.queries.shape == (queries, channels)


def test_classes_of_one_group_look_where_its_query_does():
    # Groups of 2 classes, 3 are used.
    pairs = np.asarray(maps(_head("ml_decoder"), FEATURES, np.arange(6))).reshape(3, 2, 3, 2, 10)
    np.testing.assert_array_equal(pairs[..., 0, :], pairs[..., 1, :])
    assert not np.allclose(pairs[:, :, 0], pairs[:, :, 1])


def test_ml_decoders_queries_stay():
    head = _head("ml_decoder")
    gradients = nnx.jit(nnx.grad(lambda head: head(FEATURES, train=False).sum()))(head)
    zero = {
        "/".join(map(str, path)) for path, x in nnx.to_flat_state(gradients) if not x[...].any()
    }
    assert "query_embed" in zero and "embed_standart/kernel" not in zero


def test_ml_decoder_drops_as_published_unless_told_otherwise():
    with pytest.raises(InputError, match="pass key="):
        _head("ml_decoder")(FEATURES, train=True)
    head = _head("ml_decoder", decoder_dropout=0.0)
    np.testing.assert_array_equal(logits(head, FEATURES, train=True), logits(head, FEATURES))
    twice = np.concatenate([FEATURES[:1]] * 2)
    same = logits(_head("ml_decoder"), twice, train=True, key=jax.random.key(0))
    assert not np.allclose(same[0], same[1])  # each image has masks of its own


@pytest.mark.parametrize(
    ("channels", "heads"), [(192, 4), (288, 6), (384, 8), (512, 8), (2048, 32), (64, 1), (50, 1)]
)
def test_class_attention_has_caits_heads(channels, heads):
    head = nnx.eval_shape(lambda: ClassAttentionHead(channels, 3, rngs=nnx.Rngs(0)))
    assert head.blocks[0].attn.num_heads == heads


def test_weight_decay_spares_tokens_and_scales():
    spared = {"ep": {"queries"}, "ml_decoder": {"query_embed"}, "simpool": set()}
    scales = {f"blocks/{block}/gamma_{i}" for block in (0, 1) for i in (1, 2)}
    for name, expected in (spared | {"class_attention": {"cls_token"} | scales}).items():
        params = create_model("resnet18", head=name).abstract()[0]
        mask = decay_mask(params, decay_all=True, never_decay=never_decay(name))
        kept = {path for path, decayed in flatten_dict(mask, sep="/").items() if not decayed}
        assert kept == {f"head/{path}" for path in expected}, name


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("simpool", {"num_heads": 3}, "num_heads=3 does not divide the 8 channels"),
        ("simpool", {"gamma": 0.0}, "gamma must be above 0 or None, got 0.0"),
        ("ep", {"d_out": 3}, "d_out=3 does not divide the 8 channels"),
        ("ep", {"queries": 0}, "queries must be at least 1"),
        ("ml_decoder", {"num_heads": 3}, "num_heads=3 does not divide width=16"),
        ("ml_decoder", {"decoder_dropout": 1}, r"decoder_dropout must lie in \[0, 1\), got 1"),
        ("class_attention", {"mlp_ratio": 0}, "mlp_ratio must give at least 1 hidden channel"),
        ("class_attention", {"depth": 0}, "depth must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_one_line(name, arguments, message):
    with pytest.raises(InputError, match=message):
        _head(name, **arguments)
