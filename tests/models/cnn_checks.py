"""What the tests of the convolutional families share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from noah_jax.models import create_model, get_family
from noah_jax.models.base import Model, Tree
from noah_jax.pytorch.golden import golden_images, golden_state_dict
from noah_jax.pytorch.mapping import to_jax, to_torch


class MapProbe(nnx.Module):
    """A head of the user's own, without weights: means over what it is given."""

    def __call__(self, features, *, train, key=None):
        return features.astype(jnp.float32).mean(range(1, features.ndim - 1))


def train_and_evaluate(name: str, **arguments) -> None:
    """One forward pass in training and one in evaluation, and what they must do."""
    model = create_model(name, num_classes=5, image_size=64, **arguments)
    params, stats = weights(model)
    images = golden_images(64, batch=4)
    train = jax.jit(lambda *args: model.apply(*args[:3], train=True, key=args[3]))
    logits, new = train(params, stats, images, jax.random.key(0))
    assert logits.shape == (4, 5) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert jax.tree.structure(new) == jax.tree.structure(stats)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a != b).all()), new, stats))
    again, _ = train(params, stats, images, jax.random.key(1))
    assert np.array_equal(logits, again) == (not model.arguments["head_drop_rate"])

    evaluate = jax.jit(lambda *args: model.apply(*args, train=False))
    logits, same = evaluate(params, stats, images)
    assert np.isfinite(logits).all()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), same, stats))
    # Every image by itself: neither the batch nor its order matters.
    turned, _ = evaluate(params, stats, images[::-1])
    np.testing.assert_allclose(turned[::-1], logits, rtol=1e-3, atol=1e-3 * np.std(logits))


def map_shape(name: str, image_size: tuple[int, int], **arguments) -> tuple[int, ...]:
    """Shape of the map of two images."""
    model = create_model(name, image_size=image_size, **arguments)
    images = jax.ShapeDtypeStruct((2, *image_size, 3), jnp.float32)
    return jax.eval_shape(model.features, *model.abstract(), images).shape


def torch_shapes(name: str, **arguments) -> dict[str, tuple[int, ...]]:
    """The state dict, without the batch counters, that the model converts to and from."""
    params, stats = create_model(name, **arguments).abstract()
    abstract = {"params": params, "stats": stats}
    table = get_family(name).table
    tree = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    state = to_torch(tree, table)
    back = flatten_dict(to_jax(state, table, abstract), sep="/")
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in flatten_dict(tree, sep="/").items()
    }
    return {key: value.shape for key, value in state.items()}


def weights(model: Model) -> tuple[Tree, Tree]:
    """Some weights, without the compilation that drawing the initial ones takes."""
    state = golden_state_dict(torch_shapes(model.name, **model.arguments))
    params, stats = model.abstract()
    table = get_family(model.name).table
    tree = to_jax(state, table, {"params": params, "stats": stats})
    return tree["params"], tree["stats"]


def check_any_size(name: str, channels: int) -> None:
    """A backbone takes images of any size, and halves it five times, rounding up."""
    for size, positions in (((224, 224), (7, 7)), ((65, 32), (3, 1))):
        assert map_shape(name, size) == (2, *positions, channels)


def check_batch_norm_group(name: str) -> None:
    """A BatchNorm group that does not divide the batch is refused."""
    model = create_model(name, image_size=32, batch_norm_group=3)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    with pytest.raises(ValueError, match="batch_norm_group=3 does not divide"):
        jax.eval_shape(lambda *args: model.apply(*args, train=True), *model.abstract(), images)
