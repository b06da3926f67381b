"""Checks that every key of a recipe reaches the step: without it, training differs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.compilation import QUICK_COMPILE
from noah_jax.train.setup import build
from tests.helpers import make_tiny_config


class LinearModel:
    """A model of one matrix over coarse pixels that keeps a running mean: fast to compile."""

    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def init(self, key):
        kernel = 0.1 * jax.random.normal(key, (7 * 7 * 3, 3))
        return {"kernel": kernel, "bias": jnp.zeros(3)}, {"mean": jnp.zeros(3)}

    def apply(self, params, stats, images, *, train, key):
        coarse = images.reshape(-1, 7, 4, 7, 4, 3).mean((2, 4))
        logits = coarse.reshape(len(images), -1) @ params["kernel"] + params["bias"]
        return logits, {"mean": 0.9 * stats["mean"] + 0.1 * images.mean((0, 1, 2))}


def _augmented(class_folders):
    config = make_tiny_config(class_folders)
    config.optim.learning_rate = 0.1
    return config


def _optimised(class_folders):
    """All rows of the optimizer; an epoch has seven steps and a half."""
    config = make_tiny_config(class_folders)
    config.update(erase_prob=0.0, mixup=0.0, cutmix=0.0, mix_group=None, smoothing=0.0, epochs=3.0)
    config.optim.update(
        name="adamw",
        weight_decay=0.5,
        decay_all=False,
        clip_grad_norm=0.05,
        epsilon=1e-3,
        learning_rate=0.1,
        per_epoch=True,
        warmup_epochs=1.0,
        warmup_learning_rate=0.03,
        final_learning_rate=0.02,
    )
    return config


def _train(config, steps):
    """The states after each step on fixed images."""
    setup = build(config)
    states = dataclasses.replace(setup.states, model=LinearModel())
    compiler = dataclasses.replace(setup.steps, states=states)
    step = jax.jit(compiler.make_train_step(), compiler_options=QUICK_COMPILE)
    state = states.make()
    random = np.random.RandomState(0)
    states = [state]
    for _ in range(steps):
        batch = {
            "image": jnp.asarray(random.randint(0, 256, (8, 28, 28, 3)), jnp.uint8),
            "label": jnp.asarray(random.randint(0, 3, 8), jnp.int32),
        }
        state, _ = step(state, batch)
        states.append(state)
    return jax.device_get(states)


RECIPES = {"augmented": (_augmented, 3), "optimised": (_optimised, 20)}


@pytest.fixture(scope="module")
def full(class_folders):
    """The states of both recipes, complete."""
    return {name: _train(make(class_folders), steps) for name, (make, steps) in RECIPES.items()}


@pytest.mark.parametrize(
    ("recipe", "off"),
    [
        ("augmented", {"erase_prob": 0.0}),
        ("augmented", {"mixup": 0.0}),
        ("augmented", {"cutmix": 0.0}),
        ("augmented", {"mix_prob": 0.5}),
        ("augmented", {"mix_switch_prob": 0.0}),
        ("augmented", {"mix_group": None}),
        ("augmented", {"smoothing": 0.0}),
        ("optimised", {"optim.clip_grad_norm": None}),
        ("optimised", {"optim.weight_decay": 0.0}),
        ("optimised", {"optim.decay_all": True}),
        ("optimised", {"optim.name": "sgd"}),
        ("optimised", {"optim.epsilon": 1e-8}),
        ("optimised", {"optim.schedule": "constant"}),
        ("optimised", {"optim.per_epoch": False}),
        ("optimised", {"optim.warmup_epochs": 0.0}),
        ("optimised", {"optim.warmup_learning_rate": 0.0}),
        ("optimised", {"optim.final_learning_rate": 0.0}),
        ("optimised", {"optim.lr_delay_epochs": 1}),
    ],
    ids=str,
)
def test_a_row_switched_off_is_noticed(full, class_folders, recipe, off):
    make, steps = RECIPES[recipe]
    config = make(class_folders)
    for key, value in off.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    first, last = full[recipe][0]["params"], full[recipe][-1]["params"]
    other = _train(config, steps)[-1]["params"]
    # More than rounding: a hundredth of what some parameter has moved.
    shares = [
        np.abs(other[key] - last[key]).max() / np.abs(last[key] - first[key]).max() for key in last
    ]
    assert max(shares) > 0.01


def test_the_average_follows_parameters_and_statistics(full, class_folders):
    states = full["augmented"]
    average = {key: states[0][key] for key in ("params", "stats")}
    for state in states[1:]:
        average = jax.tree.map(
            lambda a, new: 0.9 * a + 0.1 * new, average, {key: state[key] for key in average}
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            state["ema"],
            average,
        )
    assert np.abs(average["stats"]["mean"]).min() > 0  # it started at zero and moved
    config = _augmented(class_folders)
    config.ema_decay = None
    without = _train(config, len(states) - 1)[-1]
    assert "ema" not in without
    np.testing.assert_allclose(
        without["params"]["kernel"], states[-1]["params"]["kernel"], rtol=1e-6
    )


@pytest.mark.parametrize("key", ["drop_rate", "drop_path_rate", "head_drop_rate"])
def test_the_models_own_rows_draw_at_random(class_folders, key):
    def draws(rate):
        config = make_tiny_config(class_folders)
        config.update(erase_prob=0.0, mixup=0.0, cutmix=0.0, mix_group=None, ema_decay=None)
        del config.model.stem, config.model.width, config.model.depths
        config.model.depth = 1
        config.model.name, config.model.image_size = "noah_mixer_s16_050_224", 32
        config.model.head_num, config.model.head_drop_rate = None, 0.0
        config.model[key] = rate
        setup = build(config)
        batch = {
            "image": jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((8,), jnp.int32),
        }
        traced = jax.make_jaxpr(setup.steps.make_train_step())(setup.states.abstract(), batch)
        return str(traced).count("random_bits")

    assert draws(0.0) == 0 < draws(0.1)


def test_repeated_images_stand_in_different_groups(class_folders):
    config = make_tiny_config(class_folders)
    config.data.update(crop="none", flip=False)

    def labels(repeats):
        config.data.repeats = repeats
        images = next(build(config).inputs.train_batches(0))["image"]
        return np.asarray(images, np.float64).sum((1, 2, 3))

    repeated, once = labels(2), labels(1)
    np.testing.assert_array_equal(repeated[:4], repeated[4:])
    assert len(set(repeated)) == 4 and len(set(once)) == 8


def test_the_rest_of_an_epoch_is_dropped(class_folders):
    config = make_tiny_config(class_folders)
    assert build(config).plan.steps_per_epoch == 7.5
    config.data.drop_last = True
    assert build(config).plan.steps_per_epoch == 7
