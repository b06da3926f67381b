"""Compares the schedules with the learning rates that the original had in every epoch."""

import json

import jax
import numpy as np
import pytest

from noah_jax.config import default_config
from noah_jax.train.schedules import make_momentum_schedule, make_schedule

# The original's recipes, and how many steps an epoch of theirs has here.
IMAGENET = 1_281_167
DEIT = {
    "learning_rate": 1e-3,  # 5e-4 for 512 images, here 1024
    "warmup_epochs": 5.0,
    "warmup_learning_rate": 1e-6,
    "final_learning_rate": 1e-5,
    "lr_delay_epochs": 1,
}
RECIPES = {
    "resnet": ({"schedule": "step", "learning_rate": 0.1}, 256),
    "mobilenet": ({"schedule": "cosine", "learning_rate": 0.05}, 256),
    "shufflenet": ({"schedule": "linear", "learning_rate": 0.5}, 1024),
    "deit": ({"schedule": "cosine", **DEIT}, 1024),
    "pvt": ({"schedule": "cosine", **DEIT}, 1024),
    "mlp": (
        {
            "schedule": "cosine",
            "learning_rate": 7e-4,
            "warmup_epochs": 20.0,
            "warmup_learning_rate": 1e-6,
            "final_learning_rate": 1e-5,
        },
        1536,
    ),
}


def _config(**values):
    config = default_config().optim
    config.update(values)
    return config


def test_every_epoch_has_the_originals_learning_rate(golden):
    expected = json.loads((golden / "schedules.json").read_text())["lr"]
    assert expected.keys() == RECIPES.keys()
    for name, rates in expected.items():
        values, batch_size = RECIPES[name]
        for images in (IMAGENET, IMAGENET // batch_size * batch_size):  # the tail kept, dropped
            epoch = images / batch_size
            schedule = jax.vmap(
                make_schedule(
                    _config(per_epoch=True, **values),
                    epochs=float(len(rates)),
                    steps_per_epoch=epoch,
                )
            )
            # A step that holds the end of an epoch and the start of the next is the former's.
            first = -(-np.arange(len(rates)) * images // batch_size)
            np.testing.assert_allclose(schedule(first), rates, rtol=1e-6)
            np.testing.assert_allclose(schedule(first[1:] - 1), rates[:-1], rtol=1e-6)
        beyond = np.int32(round(len(rates) * epoch) + 5)
        np.testing.assert_allclose(schedule(beyond[None]), rates[-1:], rtol=1e-6)


def _rates(**values):
    schedule = make_schedule(_config(learning_rate=0.4, **values), epochs=10.0, steps_per_epoch=10)
    return np.array(jax.vmap(schedule)(np.arange(100)))


def test_one_cycle_is_its_formula():
    """As PyTorch has it: from peak / 25 to the peak at step 0.2 * 100 - 1, then down."""
    config = _config(schedule="one_cycle", learning_rate=0.4)
    config.one_cycle.pct_start = 0.2
    rates = jax.vmap(make_schedule(config, epochs=10.0, steps_per_epoch=10))(np.arange(103))
    momentum = jax.vmap(make_momentum_schedule(config, epochs=10.0, steps_per_epoch=10))(
        np.arange(103)
    )

    def expected(first, peak, last):
        rise = [peak + (first - peak) / 2 * (1 + np.cos(np.pi * s / 19)) for s in range(20)]
        fall = [last + (peak - last) / 2 * (1 + np.cos(np.pi * s / 80)) for s in range(1, 81)]
        return np.array([*rise, *fall, last, last, last])

    np.testing.assert_allclose(rates, expected(0.016, 0.4, 1.6e-6), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(momentum, expected(0.95, 0.85, 0.95), rtol=1e-6)
    config.one_cycle.momentum = None
    assert make_momentum_schedule(config, epochs=10.0, steps_per_epoch=10) is None
    for total in (1, 2, 5):  # the peak lies before the first step, or on it
        rates = jax.vmap(make_schedule(config, epochs=1.0, steps_per_epoch=total))(np.arange(total))
        assert np.isfinite(rates).all() and (rates > 0).all()


def test_one_cycle_has_a_rise_of_its_own():
    for values, words in (
        ({"warmup_epochs": 1.0}, "optim.warmup_epochs=1.0 does not go with"),
        ({"per_epoch": True}, "optim.per_epoch=True does not go with"),
    ):
        with pytest.raises(ValueError, match=words):
            _rates(schedule="one_cycle", **values)


def test_smooth_schedules():
    np.testing.assert_allclose(_rates(schedule="constant"), 0.4)
    cosine = _rates(schedule="cosine", warmup_epochs=2, final_learning_rate=0.01)
    np.testing.assert_allclose(
        cosine[:21], [0.4 * (s + 1) / 20 for s in range(20)] + [0.4], rtol=1e-5
    )
    np.testing.assert_allclose(cosine[60], 0.205, rtol=1e-5)
    assert np.all(np.diff(cosine[20:]) < 0) and 0.01 < cosine[-1] < 0.011
    np.testing.assert_allclose(_rates(schedule="linear")[[0, 50]], [0.4, 0.2], rtol=1e-5)
    step = _rates(schedule="step", step_epochs=(3.0, 6.0))
    np.testing.assert_allclose(step[[0, 29, 30, 59, 60]], [0.4, 0.4, 0.04, 0.04, 0.004], rtol=1e-5)
    warm = _rates(schedule="constant", warmup_epochs=2, warmup_learning_rate=0.2)
    np.testing.assert_allclose(warm[[0, 9, 19, 20]], [0.21, 0.3, 0.4, 0.4], rtol=1e-5)


def test_held_during_an_epoch():
    constant = _rates(schedule="constant", per_epoch=True, warmup_epochs=2.0)
    np.testing.assert_allclose(constant[[0, 9, 10, 19, 20, 99]], [0, 0, 0.2, 0.2, 0.4, 0.4])
    late = _rates(schedule="linear", per_epoch=True, lr_delay_epochs=2)
    np.testing.assert_allclose(late[[0, 29, 30, 99]], [0.4, 0.4, 0.36, 0.12], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"schedule": "cos"},
            "optim.schedule must be cosine, linear, constant, step or one_cycle",
        ),
        ({"warmup_epochs": 9.0}, "optim.warmup_epochs=9.0 are 9 steps"),
        ({"lr_delay_epochs": 1}, "0 unless optim.per_epoch=True"),
        ({"lr_delay_epochs": -1, "per_epoch": True}, "optim.lr_delay_epochs=-1"),
    ],
)
def test_bad_values(values, words):
    with pytest.raises(ValueError, match=words):
        make_schedule(_config(**values), epochs=9.0, steps_per_epoch=1)
