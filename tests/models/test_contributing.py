"""A new backbone takes one folder and one row: the steps of CONTRIBUTING.md on a toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax import create_model, list_models
from noah_jax.models import FAMILIES, get_family
from noah_jax.pytorch.infer import find_model
from noah_jax.pytorch.mapping import to_jax, to_torch
from tests.models import toy

QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(autouse=True)
def row(monkeypatch):
    """The row of the new family in the table of families."""
    monkeypatch.setitem(FAMILIES, "toy", toy.FAMILY)


def _weights(model):
    """Weights that differ everywhere, without compiling the initialisers."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.5 + random.random(leaf.shape, np.float32), model.abstract())


def _state_dict(model, params, stats):
    return to_torch({"params": params, "stats": stats}, get_family(model.name).table)


def test_names():
    assert list_models("*toy*") == ["noah_toy_large", "noah_toy_small", "toy_large", "toy_small"]
    with pytest.raises(ValueError, match="did you mean toy_small"):
        create_model("toy_smal")


# Three convolutions of 3x3 with their BatchNorms, and the head.
_BACKBONE = 9 * 8 * (3 + 8 + 8) + 3 * 2 * 8


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("toy_small", _BACKBONE + 8 * 5 + 5),
        # The query sees 1 channel of 2 in each of the 2 blocks, the value 3 of 6.
        ("noah_toy_small", _BACKBONE + 2 * (1 + 3 + 2) * 5),
    ],
)
def test_model(name, count):
    model = create_model(name)
    assert model.num_params == count
    params, stats = model.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, *model.image_size, 3))
    apply = jax.jit(model.apply, static_argnames="train", compiler_options=QUICK)
    logits, same = apply(params, stats, images, train=False)
    assert logits.shape == (4, 5) and logits.dtype == jnp.float32
    assert same.keys() == stats.keys()
    trained, new = apply(params, stats, images, train=True)
    assert trained.shape == (4, 5)
    assert not np.array_equal(new["layers"]["2"]["bn"]["mean"], stats["layers"]["2"]["bn"]["mean"])


@pytest.mark.parametrize("name", ["toy_small", "noah_toy_small"])
def test_pytorch_and_back(name):
    model = create_model(name)
    params, stats = _weights(model)
    state = _state_dict(model, params, stats)
    assert state["layers.1.0.weight"].shape == (8, 8, 3, 3)
    abstract = dict(zip(("params", "stats"), model.abstract(), strict=True))
    tree = to_jax(state, get_family(name).table, abstract)
    jax.tree.map(np.testing.assert_array_equal, tree, {"params": params, "stats": stats})
    again = _state_dict(model, tree["params"], tree["stats"])
    assert again.keys() == state.keys()
    assert all(np.array_equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("name", "dimensions"),
    [
        ("toy_small", {}),
        ("noah_toy_large", {}),
        ("toy_large", {"width": 12, "depth": 2}),
        ("noah_toy_small", {"depth": 4}),
    ],
)
def test_inferred_from_shapes(name, dimensions):
    model = create_model(name, num_classes=3, **dimensions)
    state = _state_dict(model, *_weights(model))
    found = find_model(state, hint=name)
    assert found.model.name == name
    assert found.model.arguments == model.arguments
    assert found.model.abstract() == model.abstract()


def test_names_of_another_library():
    model = create_model("toy_small")
    state = _state_dict(model, *_weights(model))
    foreign = {key.replace("head.2", "fc"): value for key, value in state.items()}
    found = find_model(foreign)
    assert found.model.name == "toy_small" and found.state_dict.keys() == state.keys()
