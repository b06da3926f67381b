"""Compares the norms that a step reports with those computed by hand, and finds them in the log."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from noah_jax.train.optimizer import make_optimizer
from noah_jax.train.param_groups import find_param_groups
from noah_jax.train.state import init_state
from noah_jax.train.step import make_train_step
from tests.helpers import make_tiny_config

NORMS = ("grad_norm", "param_norm", "update_norm")


class QuadraticModel:
    """Logits are `images @ kernel + bias`, with a scale that can be frozen: a gradient by hand."""

    def init(self, key):
        kernel = jax.random.normal(key, (3, 2))
        return {"kernel": kernel, "bias": jnp.zeros(2), "scale": jnp.ones(())}, {}

    def apply(self, params, stats, images, *, train, key):
        features = images.mean((1, 2))
        return params["scale"] * (features @ params["kernel"] + params["bias"]), stats

    def abstract(self):
        return jax.eval_shape(self.init, jax.random.key(0))


def _norm(tree, without=()):
    flat = flatten_dict(jax.device_get(tree), sep="/")
    arrays = [np.asarray(x, np.float64).ravel() for key, x in flat.items() if key not in without]
    return np.linalg.norm(np.concatenate(arrays))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("frozen", [(), ("scale",)])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_the_norms_are_those_computed_by_hand(accumulate, frozen, clip):
    model = QuadraticModel()
    section = make_tiny_config("").optim
    section.update(learning_rate=0.5, weight_decay=0.1, clip_grad_norm=clip)
    section.freeze = tuple(f"^{path}$" for path in frozen)
    param_groups = find_param_groups(section, model.abstract()[0])
    schedule = optax.constant_schedule(section.learning_rate)
    optimizer = make_optimizer(section, schedule, decay_all=True)
    mean, std = (0.5,) * 3, (0.25,) * 3
    step = make_train_step(
        model,
        optimizer,
        schedule,
        seed=0,
        mean=mean,
        std=std,
        frozen=param_groups.frozen,
        accumulate=accumulate,
    )
    state = init_state(model, optimizer, 0, frozen=param_groups.frozen)
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (8, 4, 4, 3), np.uint8)
    label = random.randint(0, 2, 8, np.int32)
    new, metrics = jax.jit(step)(state, {"image": image, "label": label})

    features = ((image / 255 - mean[0]) / std[0]).mean((1, 2))
    kernel = np.asarray(state["params"]["kernel"], np.float64)
    logits = features @ kernel
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    residuals = (probabilities - np.eye(2)[label]) / len(label)
    gradient = {
        "kernel": features.T @ residuals,
        "bias": residuals.sum(0),
        "scale": (residuals * logits).sum(),
    }
    update = jax.tree.map(lambda a, b: a - b, new["params"], state["params"])
    expected = [_norm(gradient, frozen), _norm(new["params"], frozen), _norm(update)]
    actual = [getattr(metrics, name) for name in NORMS]
    assert all(norm.dtype == jnp.float32 and norm.shape == () for norm in actual)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    # They are not part of what a checkpoint holds.
    assert not {field for field in vars(new["metrics"])} & set(NORMS)


def test_they_are_logged(whole_run):
    lines = map(json.loads, (whole_run.workdir / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if line["split"] == "train"]
    assert len(lines) == 3
    for line in lines:
        assert all(0 < line[name] < np.inf for name in NORMS)
        assert line["update_norm"] < line["param_norm"]
        words = (
            "norms: gradient {grad_norm:.3g}, parameters {param_norm:.3g}, update {update_norm:.3g}"
        )
        assert words.format(**line) in whole_run.said
    events = b"".join(path.read_bytes() for path in (whole_run.workdir / "tensorboard").iterdir())
    assert all(f"train/{name}".encode() in events for name in NORMS)
