"""ResNet: the boundary, statistics, the small stem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax import create_model


@pytest.fixture(scope="module")
def small():
    model = create_model(
        "noah_resnet18", num_classes=5, stem="small", width=4, head_num=2, batch_norm_group=2
    )
    params, stats = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})(
        jax.random.key(0)
    )
    return model, params, stats


def test_the_boundary_is_pure_and_plain(small):
    model, params, stats = small
    assert jax.tree.structure((params, stats)) == jax.tree.structure(model.abstract())
    assert all(type(leaf).__name__ == "ArrayImpl" for leaf in jax.tree.leaves(params))
    images = jax.random.normal(jax.random.key(1), (4, 28, 28, 3))
    apply = jax.jit(model.apply, static_argnames="train")
    logits, same = apply(params, stats, images, train=False)
    assert logits.shape == (4, 5) and logits.dtype == jnp.float32
    assert all(map(np.array_equal, jax.tree.leaves(same), jax.tree.leaves(stats)))
    _, new = apply(params, stats, images, train=True)
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(stats), strict=True)
    ]
    assert all(changed)


def test_the_small_stem_leaves_a_map_to_attend_to(small):
    model, params, stats = small
    images = jax.random.normal(jax.random.key(1), (4, 28, 28, 3))
    assert jax.eval_shape(model.features, params, stats, images).shape == (4, 4, 4, 32)
    attention = jax.eval_shape(model.attention, params, stats, images, jnp.array([0, 3]))
    assert attention.shape == (4, 2, 2, 4, 4)
    large = create_model("resnet50").features
    shape = jax.eval_shape(
        large,
        *create_model("resnet50").abstract(),
        jax.ShapeDtypeStruct((1, 224, 192, 3), "float32"),
    ).shape
    assert shape == (1, 7, 6, 2048)


def test_foreign_weights_are_refused(small):
    model, params, stats = small
    images = jnp.zeros((2, 28, 28, 3))
    with pytest.raises(ValueError, match="params lack 'conv1/kernel'"):
        model.apply({k: v for k, v in params.items() if k != "conv1"}, stats, images, train=False)
    with pytest.raises(ValueError, match="which the model does not have"):
        model.apply({**params, "extra": jnp.zeros(1)}, stats, images, train=False)
    wider = create_model("noah_resnet18", num_classes=6, stem="small", width=4, head_num=2)
    with pytest.raises(ValueError, match="of shape"):
        wider.apply(params, stats, images, train=False)
    with pytest.raises(ValueError, match="images must be"):
        model.apply(params, stats, jnp.zeros((2, 3, 28, 28)), train=False)


@pytest.mark.parametrize(
    ("arguments", "message"), [(dict(stem="tiny"), "stem must be"), (dict(width=0), "width")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model("resnet18", **arguments)
