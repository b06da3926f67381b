"""Compares the optimizers with PyTorch's formulas, and checks what they decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from noah_jax.config import default_config
from noah_jax.train.optimizer import make_optimizer
from noah_jax.train.schedules import make_momentum_schedule, make_schedule
from noah_jax.train.setup import build
from tests.helpers import make_tiny_config


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


def test_adam_is_pytorchs():
    got = _run(_config(name="adam", weight_decay=0.3, decay_all=False, epsilon=1e-3))
    for key, start in (("kernel", [[0.5, -1.5]]), ("bias", [2.0])):
        p, m, v = np.array(start), 0.0, 0.0
        for step in range(4):
            g = np.sin(step + p) + (0.3 * p if key == "kernel" else 0)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            rate = m / (1 - 0.9 ** (step + 1))
            p = p - 0.1 * rate / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-3)
        np.testing.assert_allclose(got[key], p, atol=4 * 0.1 * 2.5e-5)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_one_cycle_is_pytorchs(name):
    """Learning rate and momentum change in each step, the moments' correction with them."""
    torch = pytest.importorskip("torch")
    steps = 10
    config = _config(
        name=name, schedule="one_cycle", learning_rate=0.2, decay_all=True, weight_decay=0.03
    )
    config.one_cycle.update(pct_start=0.35, div_factor=10.0, final_div_factor=100.0)
    length = {"epochs": 2.0, "steps_per_epoch": steps / 2}
    schedule = make_schedule(config, **length)
    optimizer = make_optimizer(
        config, schedule, decay_all=True, momentum=make_momentum_schedule(config, **length)
    )
    params = {"x": jnp.array([0.5, -1.5])}
    state = optimizer.init(params)
    weight = torch.nn.Parameter(torch.tensor([0.5, -1.5]))
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    words = {"momentum": 0.9} if name == "sgd" else {}
    theirs = kind([weight], lr=0.2, weight_decay=0.03, **words)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 0.2, steps, pct_start=0.35, div_factor=10.0, final_div_factor=100.0
    )
    for step in range(steps):
        grads = {"x": jnp.sin(step + params["x"])}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert float(schedule(step)) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-5)
        weight.grad = torch.sin(step + weight.detach())
        theirs.step()
        if step + 1 < steps:
            cycle.step()
        np.testing.assert_allclose(params["x"], weight.detach().numpy(), rtol=2e-4)


def _decayed(config):
    """Paths of the parameters that a configuration's weight decay moves."""
    setup = build(config)
    params = jax.tree.map(lambda x: jnp.ones((1,) * x.ndim), setup.model.abstract()[0])
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = setup.states.optimizer
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    return {path for path, update in flatten_dict(updates, sep="/").items() if update.any()}


def test_what_decays_is_the_recipes_unless_configured(class_folders):
    config = make_tiny_config(class_folders)
    assert {"conv1/kernel", "bn1/scale", "bn1/bias", "head/query/bias"} <= _decayed(config)
    config.optim.decay_all = False
    assert not _decayed(config) & {"bn1/scale", "bn1/bias", "head/query/bias"}

    config = make_tiny_config(class_folders)
    config.model.name = "deit_tiny_050_patch16_224"
    config.model.image_size = 32
    config.model.head_num = None
    del config.model.stem, config.model.width, config.model.depths
    decayed = _decayed(config)
    assert "blocks/0/attn/qkv/kernel" in decayed
    assert not decayed & {"pos_embed", "cls_token", "norm/scale", "head/linear/bias"}
    config.optim.decay_all = True
    assert {"pos_embed", "cls_token", "norm/scale", "head/linear/bias"} <= _decayed(config)


def test_clipping_by_the_global_norm():
    grads = {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([4.0])}  # of norm 5
    for limit, scale in ((1.0, 1 / 5), (5.5, 1.0), (None, 1.0)):
        config = _config(name="sgd", weight_decay=0.0, clip_grad_norm=limit)
        optimizer = make_optimizer(config, optax.constant_schedule(1.0), decay_all=True)
        updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
        np.testing.assert_allclose(updates["kernel"], [[-3 * scale, 0]], rtol=1e-6)
        np.testing.assert_allclose(updates["bias"], [-4 * scale], rtol=1e-6)


def test_bad_values():
    with pytest.raises(ValueError, match="sgd, adam or adamw"):
        make_optimizer(_config(name="lion"), optax.constant_schedule(0.1), decay_all=True)
    with pytest.raises(ValueError, match="clip_grad_norm=0"):
        make_optimizer(_config(clip_grad_norm=0.0), optax.constant_schedule(0.1), decay_all=True)
