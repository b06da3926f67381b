"""Every registered model: exact parameter counts, and the boundary's errors."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax import create_model, list_models


def _counts(golden) -> dict[str, int]:
    with gzip.open(golden / "models.json.gz", "rt") as file:
        return {name: spec["num_params"] for name, spec in json.load(file).items()}


@pytest.mark.parametrize("name", list_models())
def test_parameter_count_is_the_originals(name, golden):
    # A registered name without a count in the golden file fails here.
    assert create_model(name).num_params == _counts(golden)[name]


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'noah_resnet5'.*noah_resnet50"):
        create_model("noah_resnet5")
    with pytest.raises(ValueError, match="list_models"):
        create_model("qqqq")


def test_list_models_takes_a_pattern():
    assert list_models("noah_resnet1*") == ["noah_resnet101", "noah_resnet152", "noah_resnet18"]
    assert len(list_models("*resnet*")) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_class=3), "no argument 'num_class'; did you mean 'num_classes'"),
        (dict(num_classes=0), "num_classes must be at least 1"),
        (dict(head="nose"), "head must be 'linear', 'noah'"),
        (dict(head="noah", head_num=7), "head_num=7"),
        (dict(image_size=(1, 2, 3)), "image_size"),
        (dict(image_size=0), "image_size"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model("resnet18", **arguments)


def test_head_by_argument_equals_head_by_name():
    by_name, by_argument = create_model("noah_resnet50"), create_model("resnet50", head="noah")
    assert jax.tree.structure(by_name.abstract()) == jax.tree.structure(by_argument.abstract())
    assert create_model("noah_resnet50", head="linear").num_params == 25557032


class _MaxHead(nnx.Module):
    """A head of the user's own: the maximum over the positions and a linear layer."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, features, *, train, key=None):
        return self.linear(features.max((1, 2)))


def test_any_module_can_be_the_head():
    head = _MaxHead(nnx.Rngs(0))
    model = create_model("resnet18", num_classes=3, head=head, stem="small", width=4)
    params, stats = model.init(jax.random.key(0))
    images = jnp.ones((2, 16, 16, 3))
    logits, _ = model.apply(params, stats, images, train=False)
    expected = head(model.features(params, stats, images), train=False)
    assert logits.shape == (2, 3)
    assert jnp.allclose(logits, expected)
    with pytest.raises(ValueError, match="no attention"):
        model.attention(params, stats, images, jnp.array([0]))


def test_evaluation_options_compile_and_keep_the_numbers():
    assert create_model("mobilenetv2_035").evaluation_options() is None
    model = create_model("noah_resmlp_12_224", image_size=32, num_classes=3)
    options = model.evaluation_options()
    assert (options is not None) == (jax.default_backend() == "cpu")
    x = jax.random.normal(jax.random.key(0), (64, 256))
    product = jax.jit(lambda x: x @ x.T, compiler_options=options)(x)
    np.testing.assert_allclose(product, np.asarray(x) @ np.asarray(x).T, atol=1e-3)
