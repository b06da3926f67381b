"""A new head is a class and a row of the table."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from noah_jax import create_model
from noah_jax.errors import InputError
from noah_jax.heads.registry import HEADS


class _MaxHead(nnx.Module):
    """Takes the largest value of every channel, then a linear layer."""

    def __init__(self, in_features, num_classes, rngs):
        self.linear = nnx.Linear(in_features, num_classes, rngs=rngs)

    def __call__(self, features, *, train, key=None):
        return self.linear(features.max((1, 2)))


def _make_max_head(spec, in_features, init, rngs):
    return _MaxHead(in_features, spec.num_classes, rngs)


def test_a_registered_head_is_made_by_its_name(monkeypatch):
    monkeypatch.setitem(HEADS, "max", _make_max_head)
    model = create_model("resnet18", head="max", num_classes=3, image_size=32)
    assert model.arguments["head"] == "max"
    params, stats = model.abstract()
    assert params["head"]["linear"]["kernel"].shape == (512, 3)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits, _ = jax.eval_shape(lambda *a: model.apply(*a, train=False), params, stats, images)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("head", ["max", ["noah"], 3])
def test_other_heads_are_refused(head):
    with pytest.raises(InputError, match=r"head must be 'linear', 'noah' or a flax.nnx.Module"):
        create_model("resnet18", head=head)
