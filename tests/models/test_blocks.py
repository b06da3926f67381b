"""What holds for DeiT, PVT and the MLP family alike, and the blocks they share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax import create_model
from noah_jax.models import blocks
from noah_jax.models.blocks import linear_rates, patch_grid
from noah_jax.models.mlp import modeling as mlp
from noah_jax.nn.layers import Dropout, LayerNorm, drop_path
from noah_jax.nn.modules import split_module, state_to_tree
from tests.models.vit_checks import (
    BUILDS,
    equations,
    quick_jit,
    random_images,
    random_params,
    small_build,
    small_model,
)

KINDS = list(BUILDS)
KEY = jax.random.key(0)
# Blocks of the small models, and residual branches and dropouts in each.
SITES = {
    "deit": (2, 2, 3),
    "pvt": (4, 2, 3),
    "mixer": (2, 2, 4),
    "gmixer": (2, 2, 4),
    "resmlp": (2, 2, 2),
    "gmlp": (2, 1, 2),
}


@pytest.mark.parametrize(
    ("kind", "rate"), [("mixer", "drop_rate"), *((kind, "drop_path_rate") for kind in KINDS)]
)
def test_forward(kind, rate):
    model = small_model(kind, **{rate: 0.3})
    params = random_params(model)
    images = random_images()

    @quick_jit
    def run(key):
        evaluated, stats = model.apply(params, {}, images, train=False)
        trained, new_stats = model.apply(params, stats, images, train=True, key=key)
        assert stats == new_stats == {}
        return evaluated, trained

    evaluated, trained = run(KEY)
    for logits in (evaluated, trained):
        assert logits.shape == (2, 10)
        assert logits.dtype == jnp.float32
        assert np.isfinite(logits).all()
        assert np.abs(logits[0] - logits[1]).max() > 1e-3
    np.testing.assert_array_equal(trained, run(KEY)[1])
    again, other = run(jax.random.key(1))
    np.testing.assert_array_equal(evaluated, again)
    assert np.abs(trained - other).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_training_without_randomness_is_evaluation(kind):
    def program(model, train):
        def logits(params, images):
            return model.apply(params, {}, images, train=train)[0]

        return str(jax.make_jaxpr(logits)(model.abstract()[0], random_images()))

    evaluation = program(small_model(kind), False)
    assert program(small_model(kind), True) == evaluation
    assert program(small_model(kind, drop_rate=0.3, drop_path_rate=0.3), False) == evaluation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", ["drop_rate", "drop_path_rate"])
def test_randomness_needs_a_key(kind, rate):
    model = small_model(kind, **{rate: 0.1})
    with pytest.raises(ValueError, match="random key"):
        jax.eval_shape(
            lambda params: model.apply(params, {}, random_images(), train=True),
            model.abstract()[0],
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_branch_and_dropout_has_a_key_of_its_own(kind, monkeypatch):
    paths, dropouts = [], []

    def record_path(x, rate, key):
        paths.append((rate, key))
        return x

    def record_dropout(self, x, key):
        dropouts.append((self.rate, key))
        return x

    monkeypatch.setattr(blocks, "drop_path", record_path)
    monkeypatch.setattr(mlp, "drop_path", record_path)
    monkeypatch.setattr(Dropout, "__call__", record_dropout)
    model = small_model(kind, "linear", drop_rate=0.2, drop_path_rate=0.3, head_drop_rate=0.1)

    @quick_jit
    def recorded_keys(key):
        model.apply(random_params(model), {}, random_images(), train=True, key=key)
        return [jax.random.key_data(key) for _, key in paths + dropouts]

    keys = recorded_keys(KEY)
    assert len(set(map(tuple, np.asarray(keys).tolist()))) == len(keys)

    depth, branches, drops = SITES[kind]
    stages = {"deit": 1, "pvt": 4}.get(kind, 0)  # dropouts after position embeddings
    assert len(paths) == depth * branches
    assert [rate for rate, _ in dropouts] == [0.2] * (depth * drops + stages) + [0.1]
    rates = linear_rates(0.3, depth) if kind in ("deit", "pvt") else [0.3] * depth
    np.testing.assert_allclose([rate for rate, _ in paths], np.repeat(rates, branches))


def _loss(model, params):
    logits, _ = model.apply(params, {}, random_images(), train=True, key=KEY)
    return jnp.square(logits).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_remat_wraps_every_block(kind):
    for remat in (False, True):
        model = small_model(kind, remat=remat, drop_rate=0.1)
        program = jax.make_jaxpr(functools.partial(_loss, model))(model.abstract()[0])
        wrapped = [e for e in equations(program) if "prevent_cse" in e.params]
        assert len(wrapped) == (SITES[kind][0] if remat else 0)


def test_remat_gives_the_same_gradients():
    def gradients(remat):
        model = small_model("mixer", depth=1, drop_path_rate=0.3, remat=remat)
        return quick_jit(jax.value_and_grad(functools.partial(_loss, model)))(random_params(model))

    (loss, plain), (again, rematerialised) = gradients(False), gradients(True)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    # Some gradients are zero but for rounding, so the largest sets the scale.
    largest = max(np.abs(x).max() for x in jax.tree.leaves(plain))
    compare = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6 * largest)
    jax.tree.map(compare, rematerialised, plain)


def test_bfloat16_is_near_float32():
    def logits(dtype):
        model = small_model("deit", "linear", dtype=dtype)
        apply = quick_jit(model.apply, static_argnames="train")
        return apply(random_params(model), {}, random_images(), train=False)[0]

    exact = logits(jnp.float32)
    assert np.abs(logits(jnp.bfloat16) - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("kind", KINDS)
def test_rectangles_and_any_head(kind):
    class Pick(nnx.Module):
        def __call__(self, features, *, train, key=None):
            assert features.ndim == 4
            return features[:, 0, 0, :3]

    model = small_model(kind, Pick(), image_size=(64, 96))
    images = random_images(height=64, width=96)
    params, stats = model.abstract()
    stride = 32 if kind == "pvt" else 16
    features = jax.eval_shape(model.features, params, stats, images)
    assert features.shape[:3] == (2, 64 // stride, 96 // stride)
    apply = functools.partial(model.apply, train=False)
    assert jax.eval_shape(apply, params, stats, images)[0].shape == (2, 3)


NAMES = ["deit_tiny_050_patch16_224", "pvt_tiny_050", "mixer_s16_050_224"]


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=r"image_size=\(224, 100\).*multiples of (16|32)"):
        create_model(name, image_size=(224, 100))
    with pytest.raises(ValueError, match=r"drop_rate must lie in \[0, 1\), got 1"):
        create_model(name, drop_rate=1)
    with pytest.raises(ValueError, match=r"drop_path_rate must lie in \[0, 1\), got -0.1"):
        create_model(name, drop_path_rate=-0.1)
    with pytest.raises(ValueError, match="did you mean 'drop_path_rate'"):
        create_model(name, drop_path=0.1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pvt"])
def test_images_of_another_size(kind):
    model = small_model(kind)
    params, stats = model.abstract()
    with pytest.raises(ValueError, match=r"64x64 pixels, got 96x64.*image_size=\(96, 64\)"):
        jax.eval_shape(model.features, params, stats, random_images(height=96))


def test_patch_grid_names_sizes_that_fit():
    assert patch_grid((64, 96), 16) == (4, 6)
    with pytest.raises(ValueError, match=r"such as \(16, 224\)"):
        patch_grid((7, 220), 16)


def test_initial_weights_are_those_of_nnx_rngs():
    @quick_jit
    def both(key):
        module = small_build("mixer", depth=1)(nnx.Rngs(params=key))
        return small_model("mixer", depth=1).init(key)[0], state_to_tree(split_module(module)[1])

    jax.tree.map(np.testing.assert_array_equal, *both(KEY))


def test_layer_norm_keeps_its_digits():
    x = 1000 + np.random.RandomState(0).standard_normal((4, 64)).astype(np.float32)
    norm = LayerNorm(64, epsilon=1e-5, rngs=nnx.Rngs(0))
    exact = np.float64(x) - np.float64(x).mean(-1, keepdims=True)
    exact /= np.sqrt(np.square(exact).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(x), exact, atol=1e-4)
    half = LayerNorm(64, epsilon=1e-5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    # Inside all is float32: only the result is rounded.
    np.testing.assert_array_equal(half(x), norm(x).astype(jnp.bfloat16))


def test_layer_norm_epsilon():
    norm = LayerNorm(2, epsilon=0.5, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(norm(jnp.asarray([1.0, 3.0])), [-1 / 1.5**0.5, 1 / 1.5**0.5])


def test_drop_path_drops_whole_samples():
    x = jax.random.normal(jax.random.key(1), (4000, 3, 2)) + 5
    y = np.asarray(drop_path(x, 0.25, KEY))
    kept = y[:, 0, 0] != 0
    np.testing.assert_array_equal(y[~kept], 0)
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_array_equal(drop_path(x, 0.25, None), x)
    np.testing.assert_array_equal(drop_path(x, 0.0, KEY), x)
    assert drop_path(x.astype(jnp.bfloat16), 0.25, KEY).dtype == jnp.bfloat16


def test_linear_rates():
    np.testing.assert_allclose(linear_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
    assert linear_rates(0.3, 1) == [0]


def test_over_tokens_is_the_linear_on_the_turned_map():
    linear = nnx.Linear(4, 4, bias_init=nnx.initializers.normal(1), rngs=nnx.Rngs(0))
    x = jax.random.normal(KEY, (2, 4, 3))
    expected = linear(x.swapaxes(1, 2)).swapaxes(1, 2)
    np.testing.assert_allclose(mlp.over_tokens(linear, x), expected, atol=1e-6)
