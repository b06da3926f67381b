"""Tests the quickstart: both heads get the same data, and there is something to attend to."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.models.images import normalise
from noah_jax.train.setup import build
from tests.helpers import ROOT


def _config(variant="noah"):
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "configs/quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def test_the_variants_differ_in_the_head_alone():
    noah, linear = _config().to_dict(), _config("linear").to_dict()
    assert noah["model"].pop("name") == "noah_resnet18"
    assert linear["model"].pop("name") == "resnet18"
    assert noah == linear
    with pytest.raises(ValueError, match="variants noah and linear"):
        _config("other")


def test_trained_attention_is_not_uniform():
    config = _config()
    config.epochs = 40 * config.batch_size / 10_000
    config.optim.warmup_epochs = 0.0
    config.model.depths = (1, 1, 1, 1)
    setup = build(config)
    step = setup.steps.trace_train_step().lower().compile()
    state = setup.states.create()
    batches = list(setup.inputs.train_batches(0))
    assert len(batches) == 40
    for batch in batches:
        state, _ = step(state, batch)
    model, params, stats = setup.model, state["params"], state["stats"]
    batch = next(setup.inputs.eval_batches())
    images = normalise(batch["image"], config.data.mean, config.data.std)
    attention = jax.jit(model.attention)(params, stats, images, jnp.arange(10))
    assert attention.shape == (100, 4, 10, 4, 4)  # a map of 4x4 positions
    # Of all images, blocks and classes: how far the largest weight is above 1/16.
    assert float(jnp.median(attention.max((-1, -2)))) > 1.5 / 16
    # And it looks at places that depend on the image.
    assert np.unique(np.asarray(attention[:, 0, 0].reshape(100, 16).argmax(-1))).size > 1
