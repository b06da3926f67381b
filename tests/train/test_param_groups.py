"""Tests frozen parameters and learning rates of single parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from noah_jax import create_model
from noah_jax.config import default_config
from noah_jax.config_flags import parse_config
from noah_jax.train.optimizer import make_optimizer
from noah_jax.train.param_groups import find_param_groups, trainable
from noah_jax.train.state import init_state
from noah_jax.train.step import make_train_step
from tests.helpers import ROOT

BACKBONE = "^(?!head/)"


def _config(**values):
    config = default_config().optim
    config.update(values)
    return config


@pytest.fixture(scope="module")
def model():
    return create_model(
        "noah_mixer_s16_224", num_classes=3, image_size=32, width=8, depth=1, head_num=2
    )


def _one_step(model, **values):
    """Returns the state before and after a step, and the parameter groups."""
    config = _config(learning_rate=0.5, momentum=0.9, decay_all=True, **values)
    param_groups = find_param_groups(config, model.abstract()[0])
    schedule = optax.constant_schedule(config.learning_rate)
    optimizer = make_optimizer(config, schedule, decay_all=True, factors=param_groups.factors)
    state = jax.jit(lambda: init_state(model, optimizer, 0, frozen=param_groups.frozen))()
    step = make_train_step(
        model,
        optimizer,
        schedule,
        seed=0,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        frozen=param_groups.frozen,
    )
    images = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 3), np.uint8)
    batch = {"image": images, "label": jnp.array([0, 2])}
    return state, jax.jit(step)(state, batch)[0], param_groups


def test_frozen_parameters_have_no_update_and_no_state(model):
    before, after, param_groups = _one_step(
        model, freeze=(BACKBONE, "query/bias$"), weight_decay=0.1
    )
    paths = flatten_dict(before["params"], sep="/").keys()
    assert param_groups.frozen == {p for p in paths if not p.startswith("head/")} | {
        "head/query/bias"
    }
    old, new = (flatten_dict(s["params"], sep="/") for s in (before, after))
    for path in paths:
        assert (old[path] == new[path]).all() == (path in param_groups.frozen), path
    momenta = [x for x in jax.tree.leaves(before["opt_state"]) if x.ndim]
    assert len(momenta) == len(paths) - len(param_groups.frozen)


def test_clipping_counts_trained_gradients_alone(model):
    before, after, _ = _one_step(model, freeze=(BACKBONE,), weight_decay=0.0, clip_grad_norm=1e-3)
    change = jax.tree.map(lambda a, b: jnp.ravel(a - b), after["params"], before["params"])
    norm = np.linalg.norm(np.concatenate(jax.tree.leaves(change)))
    # The gradients' norm is above the limit, so that of the update is the limit's.
    np.testing.assert_allclose(norm, 0.5 * 1e-3, rtol=1e-3)


def test_no_gradient_is_computed_for_frozen_parameters(model):
    def flops(frozen):
        optimizer = optax.sgd(0.1)
        step = make_train_step(
            model,
            optimizer,
            optax.constant_schedule(0.1),
            seed=0,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            frozen=frozen,
        )
        state = jax.eval_shape(lambda: init_state(model, optimizer, 0, frozen=frozen))
        batch = {
            "image": jax.ShapeDtypeStruct((8, 32, 32, 3), "uint8"),
            "label": jax.ShapeDtypeStruct((8,), "int32"),
        }
        return jax.jit(step).lower(state, batch).compile().cost_analysis()["flops"]

    config = _config(freeze=(BACKBONE,))
    assert flops(find_param_groups(config, model.abstract()[0]).frozen) < 0.6 * flops(frozenset())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_factor_multiplies_the_update(name):
    """Decay and all, as PyTorch's learning rate of a group does: exact for powers of two."""
    params = {"body": {"kernel": jnp.array([[0.5, -1.5]])}, "head": {"kernel": jnp.ones((1, 3))}}
    grads = jax.tree.map(jnp.sin, params)
    config = _config(name=name, weight_decay=0.3, param_groups=(("^head/", 8.0), ("kernel", 0.5)))

    def update(factors):
        optimizer = make_optimizer(
            config, optax.constant_schedule(0.1), decay_all=True, factors=factors
        )
        return optimizer.update(grads, optimizer.init(params), params)[0]

    param_groups = find_param_groups(config, params)
    assert param_groups.factors == {
        "head/kernel": 8.0,
        "body/kernel": 0.5,
    }  # the first that matches
    plain, scaled = update({}), update(param_groups.factors)
    np.testing.assert_array_equal(scaled["head"]["kernel"], 8 * plain["head"]["kernel"])
    np.testing.assert_array_equal(scaled["body"]["kernel"], 0.5 * plain["body"]["kernel"])
    only_head = update({"head/kernel": 8.0})
    np.testing.assert_array_equal(only_head["body"]["kernel"], plain["body"]["kernel"])
    assert list(param_groups.describe(params)) == [
        "the learning rate of 3 parameters is 8 times the schedule's",
        "the learning rate of 2 parameters is 0.5 times the schedule's",
    ]


def test_what_is_trained_of_nothing_frozen_is_everything(model):
    params = model.abstract()[0]
    assert trainable(params, frozenset()) is params
    assert trainable(params, {"head/query/bias"}).keys() == params.keys()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"freeze": ("haed/",)}, r"optim.freeze: 'haed/' matches no parameter; near are .*head/"),
        ({"freeze": ("(",)}, r"optim.freeze: '\(' is no regular expression"),
        ({"freeze": (3,)}, "optim.freeze: expected a regular expression, got 3"),
        ({"freeze": (".",)}, "optim.freeze leaves no parameter to train"),
        ({"param_groups": (("haed/", 2.0),)}, "optim.param_groups: 'haed/' matches no parameter"),
        ({"param_groups": (("^head/", 0.0),)}, "must be above 0, got 0.0; optim.freeze stops"),
        ({"param_groups": (("^head/", "2"),)}, "must be above 0, got '2'"),
        ({"param_groups": ("^head/", 2.0)}, "expected pairs .* got '.head/' for one"),
        (
            {"param_groups": (("^head/", 2.0), ("query", 3.0))},
            "all that 'query' matches is .* earlier",
        ),
        (
            {"freeze": ("^head/",), "param_groups": (("^head/", 2.0),)},
            "all that '.head/' .* is frozen",
        ),
    ],
)
def test_expressions_that_do_not_fit(model, values, words):
    with pytest.raises(ValueError, match=words):
        find_param_groups(_config(**values), model.abstract()[0])


@pytest.mark.parametrize("given", ["^(?!head/)", "('^(?!head/)',)"])
def test_the_command_line(given, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["--config=configs/quickstart.py", f"--config.optim.freeze={given}"]
    words += ["--config.optim.param_groups=('^head/', 10.0),"]
    config = parse_config(words)
    assert config.optim.freeze == (BACKBONE,)
    assert config.optim.param_groups == (("^head/", 10.0),)
