"""A new head is a class and a row of the table."""

import fnmatch

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from noah_jax import create_model
from noah_jax.config import default_config, flat_config, head_key
from noah_jax.config_sections import model_section
from noah_jax.errors import InputError
from noah_jax.heads.registry import HEADS, HeadKind, complete_options
from noah_jax.heads.spec import HeadSpec


class _MaxHead(nnx.Module):
    """Takes the largest value of every channel, then a linear layer."""

    def __init__(self, in_features, num_classes, rngs):
        self.linear = nnx.Linear(in_features, num_classes, rngs=rngs)

    def __call__(self, features, *, train, key=None):
        return self.linear(features.max((1, 2)))


def _make_max_head(spec, in_features, init, rngs):
    return _MaxHead(in_features, spec.num_classes, rngs)


def test_a_registered_head_is_made_by_its_name(monkeypatch):
    kind = HeadKind(_make_max_head, lambda spec, in_features: (in_features + 1) * spec.num_classes)
    monkeypatch.setitem(HEADS, "max", kind)
    model = create_model("resnet18", head="max", num_classes=3, image_size=32)
    assert model.arguments["head"] == "max"
    params, stats = model.abstract()
    assert params["head"]["linear"]["kernel"].shape == (512, 3)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits, _ = jax.eval_shape(lambda *a: model.apply(*a, train=False), params, stats, images)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("head", ["max", ["noah"], 3])
def test_other_heads_are_refused(head):
    with pytest.raises(InputError, match=r"head must be 'linear', 'noah', .* or a flax.nnx.Module"):
        create_model("resnet18", head=head)


def test_the_configuration_has_every_option_with_its_published_default():
    section = {f"head.{key}": value for key, value in flat_config(default_config().head).items()}
    assert section == {
        head_key(kind, option): default
        for kind, row in HEADS.items()
        for option, default in row.options.items()
    }


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_patch16_224"])
def test_the_formula_counts_the_parameters(kind, name):
    width = {"resnet18": 512, "deit_tiny_patch16_224": 192}[name]
    model = create_model(name, head=kind, num_classes=7)
    row = HEADS[kind]
    spec = HeadSpec(kind, 7, 4, 0.5, options=row.options)
    head = model.abstract()[0]["head"]
    assert row.count_params(spec, width) == sum(x.size for x in jax.tree.leaves(head))
    paths = list(flatten_dict(head, sep="/"))
    assert all(fnmatch.filter(paths, pattern) for pattern in row.never_decay)


def test_options_reach_the_head_and_others_are_refused():
    config = default_config()
    config.model.head, config.model.name, config.head.gem.p = "gem", "resnet18", 4.0
    assert model_section(config)["head_options"] == {"p": 4.0}
    assert create_model(**model_section(config)).arguments["head_options"] == {"p": 4.0}
    config.head.merge = "max"
    with pytest.raises(InputError, match=r"head.merge='max' is an option of another head; .* gem"):
        model_section(config)
    with pytest.raises(InputError, match=r"a gem head takes no option 'q'.*; it takes p"):
        complete_options("gem", {"q": 1})
    with pytest.raises(InputError, match="p must be above 0"):
        create_model("resnet18", head="gem", head_options={"p": 0})
