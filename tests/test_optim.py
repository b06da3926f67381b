"""Optimizers against PyTorch's formulas, masks and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import make_tiny_config

from noah_jax.config import default_config
from noah_jax.convert.table import flatten
from noah_jax.experiment import build
from noah_jax.optim import make_optimizer
from noah_jax.schedules import make_schedule


def _config(**values):
    config = default_config().optim
    config.update(values)
    return config


def _run(config, steps=4, lr=0.1):
    """Weights after some steps with gradients `sin(step + weight)`, for a matrix and a bias."""
    params = {"kernel": jnp.array([[0.5, -1.5]]), "bias": jnp.array([2.0])}
    # The configuration's word overrides the recipe's.
    optimizer = make_optimizer(
        config, optax.constant_schedule(lr), decay_all=not config["decay_all"]
    )
    state = optimizer.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda p, s=step: jnp.sin(s + p), params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return {k: np.asarray(v, np.float64) for k, v in params.items()}


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_all", [False, True])
def test_sgd_is_pytorchs(nesterov, decay_all):
    got = _run(
        _config(name="sgd", weight_decay=0.3, nesterov=nesterov, decay_all=decay_all, momentum=0.8)
    )
    for key, start in (("kernel", [[0.5, -1.5]]), ("bias", [2.0])):
        p, buffer = np.array(start), 0.0
        for step in range(4):
            g = np.sin(step + p) + (0.3 * p if decay_all or key == "kernel" else 0)
            buffer = 0.8 * buffer + g
            p = p - 0.1 * (g + 0.8 * buffer if nesterov else buffer)
        np.testing.assert_allclose(got[key], p, rtol=1e-5)


@pytest.mark.parametrize("decay_all", [False, True])
def test_adamw_is_pytorchs(decay_all):
    got = _run(_config(name="adamw", weight_decay=0.3, decay_all=decay_all, epsilon=1e-3))
    for key, start in (("kernel", [[0.5, -1.5]]), ("bias", [2.0])):
        p, m, v = np.array(start), 0.0, 0.0
        for step in range(4):
            g = np.sin(step + p)
            p = p * (1 - 0.1 * 0.3) if decay_all or key == "kernel" else p
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            rate = m / (1 - 0.9 ** (step + 1))
            p = p - 0.1 * rate / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-3)
        # optax takes 1 - 0.999**t in float32: up to 2.5e-5 of an update of about 0.1.
        np.testing.assert_allclose(got[key], p, atol=4 * 0.1 * 2.5e-5)


def _decayed(config):
    """Paths of the parameters that an experiment's weight decay moves."""
    experiment = build(config)
    params = jax.tree.map(lambda x: jnp.ones((1,) * x.ndim), experiment.model.abstract()[0])
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = experiment.optimizer.update(zeros, experiment.optimizer.init(params), params)
    return {path for path, update in flatten(updates).items() if update.any()}


def test_what_decays_is_the_recipes_unless_configured(class_folders):
    config = make_tiny_config(class_folders)
    assert {"conv1/kernel", "bn1/scale", "bn1/bias", "head/query/bias"} <= _decayed(config)
    config.optim.decay_all = False
    assert not _decayed(config) & {"bn1/scale", "bn1/bias", "head/query/bias"}

    config = make_tiny_config(class_folders)
    config.model.name = "deit_tiny_050_patch16_224"
    config.model.image_size = 32
    del config.model.stem, config.model.width
    decayed = _decayed(config)
    assert "blocks/0/attn/qkv/kernel" in decayed
    assert not decayed & {"pos_embed", "cls_token", "norm/scale", "head/linear/bias"}
    config.optim.decay_all = True
    assert {"pos_embed", "cls_token", "norm/scale", "head/linear/bias"} <= _decayed(config)


def test_schedules():
    def rates(steps=range(100), **values):
        config = _config(learning_rate=0.4, **values)
        schedule = make_schedule(config, total_steps=100, steps_per_epoch=10)
        return np.array([schedule(s) for s in steps])

    np.testing.assert_allclose(rates(schedule="constant"), 0.4)
    cosine = rates(schedule="cosine", warmup_epochs=2, final_learning_rate=0.01)
    np.testing.assert_allclose(
        cosine[:21], [0.4 * (s + 1) / 20 for s in range(20)] + [0.4], rtol=1e-5
    )
    np.testing.assert_allclose(cosine[60], 0.205, rtol=1e-5)
    assert np.all(np.diff(cosine[20:]) < 0) and 0.01 < cosine[-1] < 0.011
    np.testing.assert_allclose(rates(schedule="linear")[[0, 50]], [0.4, 0.2], rtol=1e-5)
    step = rates(schedule="step", step_epochs=(3.0, 6.0))
    np.testing.assert_allclose(step[[0, 29, 30, 59, 60]], [0.4, 0.4, 0.04, 0.04, 0.004], rtol=1e-5)


def test_bad_values():
    with pytest.raises(ValueError, match="sgd or adamw"):
        make_optimizer(_config(name="lion"), optax.constant_schedule(0.1), decay_all=True)
    with pytest.raises(ValueError, match="schedule must be"):
        make_schedule(_config(schedule="cos"), total_steps=9, steps_per_epoch=1)
    with pytest.raises(ValueError, match="warmup_epochs=9"):
        make_schedule(_config(warmup_epochs=9.0), total_steps=9, steps_per_epoch=1)
