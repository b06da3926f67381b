"""Checks that a batch computed in micro-batches is the batch computed at once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from noah_jax.config_sections import scaled
from noah_jax.models import create_model
from noah_jax.nn import dropout
from noah_jax.nn.layers import Dropout, drop_path
from noah_jax.train import train
from noah_jax.train.messages import describe_batch_norm_groups
from noah_jax.train.mixing import make_augment
from noah_jax.train.optimizer import make_optimizer
from noah_jax.train.schedules import make_schedule
from noah_jax.train.setup import build
from noah_jax.train.state import init_state
from noah_jax.train.step import make_train_step
from tests.helpers import make_tiny_config

BATCH, STEPS = 16, 3
MODELS = {
    "resnet": dict(
        name="noah_resnet18",
        stem="small",
        width=4,
        depths=(1, 1, 1, 1),
        image_size=16,
        head_num=2,
        head_drop_rate=0.3,
        batch_norm_group=4,
    ),
    "deit": dict(
        name="deit_tiny_050_patch16_224",
        image_size=32,
        width=16,
        num_heads=2,
        depth=2,
        drop_rate=0.1,
        drop_path_rate=0.4,
        head_drop_rate=0.2,
        remat=True,
    ),
}


def _states(kind, accumulate, state=None):
    """The state before the first step, unless it is given, and after every step."""
    config = make_tiny_config("")
    config.erase_prob = config.cutmix = 0.0  # They take long to compile, and see the whole batch.
    if kind != "resnet":
        config.optim.name, config.optim.learning_rate = "adamw", 1e-3
        config.optim.epsilon = 1e-3  # Rounding would decide the update where the gradient is zero.
    model = create_model(num_classes=3, **MODELS[kind])
    schedule = make_schedule(config.optim, epochs=1.0, steps_per_epoch=STEPS)
    optimizer = make_optimizer(config.optim, schedule, decay_all=True)
    augment = make_augment(
        config,
        num_classes=3,
        batch_size=BATCH,
        size=model.image_size,
        mean=model.mean,
        std=model.std,
    )
    step = make_train_step(
        model,
        optimizer,
        schedule,
        seed=0,
        mean=model.mean,
        std=model.std,
        augment=augment,
        ema_decay=0.9,
        log_every=STEPS,
        accumulate=accumulate,
    )
    step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    if state is None:
        state = jax.jit(functools.partial(init_state, model, optimizer, 0, ema=True))()
    random = np.random.RandomState(0)
    states = [state]
    for _ in range(STEPS):
        shape = (BATCH, *model.image_size, 3)
        image = random.randint(0, 256, shape, np.uint8)
        batch = {"image": image, "label": random.randint(0, 3, BATCH, np.int32)}
        state, _ = step(state, batch)
        states.append(state)
    return states


@pytest.mark.parametrize(
    ("kind", "accumulate"),
    [("resnet", 4), pytest.param("deit", 2, marks=pytest.mark.slow)],
)
def test_micro_batches_give_the_step_of_the_whole_batch(kind, accumulate):
    whole = _states(kind, 1)
    parts = _states(kind, accumulate, whole[0])
    for a, b in zip(whole, parts, strict=True):
        keep = ("step", "params", "stats", "ema", "metrics")
        leaves, others = (jax.tree.leaves_with_path({k: s[k] for k in keep}) for s in (a, b))
        for (path, x), (_, y) in zip(leaves, others, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=str(path))
    # The optimizer was applied once a step.
    assert int(parts[-1]["step"]) == STEPS
    assert all(int(x) == STEPS for x in jax.tree.leaves(parts[-1]["opt_state"]) if x.ndim == 0)


def test_masks_of_a_micro_batch_are_those_of_the_batch():
    x = jax.random.normal(jax.random.key(1), (8, 3, 4, 6))
    part = dropout.MicroBatchKey(jax.random.key(0), jnp.array([1, 2, 6, 7]))
    for drop in (lambda x, key: drop_path(x, 0.5, key), Dropout(0.5)):
        whole = drop(x, jax.random.key(0))
        np.testing.assert_array_equal(drop(x[part.images], part), whole[part.images])
        for derive in (lambda key: dropout.fold_in(key, 3), lambda key: dropout.split(key, 2)[1]):
            other = drop(x, derive(jax.random.key(0)))
            np.testing.assert_array_equal(drop(x[part.images], derive(part)), other[part.images])
            assert (other != whole).any()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_elements_are_dropped_at_the_rate_and_independently(rate):
    mask = np.asarray(dropout.kept_elements(jax.random.key(0), (64, 50, 96), rate))
    deviation = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs(mask.mean() - (1 - rate)) < 4 * deviation
    for axis in range(3):
        ahead, behind = np.split(mask, [1], axis)[1], np.split(mask, [-1], axis)[0]
        correlation = np.corrcoef(ahead.ravel(), behind.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(ahead.size)
    images = np.asarray(dropout.kept_images(jax.random.key(0), 10_000, rate))
    assert abs(images.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / 10_000)


@pytest.mark.parametrize(
    ("accumulate", "group", "words"),
    [
        (0, 4, "optim.accumulate must be .* at least 1, got 0"),
        (3, 4, "must be at least 1 and cut batch_size=8 into micro-batches"),
        (2, None, "whole BatchNorm groups; model.batch_norm_group is the whole batch"),
        (4, 4, "micro-batches of 2 images, .*batch_norm_group is 4, choose a divisor of 2"),
    ],
)
def test_micro_batches_that_do_not_fit(tiny_config, accumulate, group, words):
    tiny_config.optim.accumulate = accumulate
    tiny_config.model.batch_norm_group = group
    with pytest.raises(ValueError, match=words):
        build(tiny_config)


def test_evaluation_takes_no_more_images_at_once_than_training(tiny_config):
    tiny_config.optim.accumulate = 2
    tiny_config.eval_batch_size = None
    assert build(tiny_config).plan.eval_batch_size == 4


def _batch_norm_line(config, mesh) -> str | None:
    setup = build(config, mesh=mesh)
    micro_batch = setup.plan.batch_size // setup.plan.accumulate
    return describe_batch_norm_groups(setup.model, micro_batch, mesh.size)


@pytest.mark.parametrize(
    ("group", "accumulate", "words"),
    [
        (4, 1, None),
        (2, 2, None),
        (16, 1, "a BatchNorm group of 16 images spans 4 devices, which have 4 each"),
        (8, 2, "a BatchNorm group of 8 images spans 4 devices, which have 2 each"),
        (None, 1, "a BatchNorm group of 16 images spans 4 devices"),
    ],
)
def test_batch_norm_groups_that_span_devices_are_told(tiny_config, group, accumulate, words):
    tiny_config.batch_size = tiny_config.eval_batch_size = 16
    tiny_config.optim.accumulate = accumulate
    tiny_config.model.batch_norm_group = group
    four = AbstractMesh((4,), ("data",), (AxisType.Auto,))
    line = _batch_norm_line(tiny_config, four)
    assert line is None if words is None else words in line


def test_batch_norm_groups_across_borders_are_told(tiny_config):
    tiny_config.batch_size = tiny_config.eval_batch_size = 24
    tiny_config.model.batch_norm_group = 4
    four = AbstractMesh((4,), ("data",), (AxisType.Auto,))
    line = _batch_norm_line(tiny_config, four)
    assert "a BatchNorm group of 4 images spans up to 2 devices, which have 6 each" in line
    tiny_config.model.name = "noah_mixer_s16_224"
    del tiny_config.model.stem, tiny_config.model.width, tiny_config.model.depths
    tiny_config.model.image_size = 32
    tiny_config.data.pad = 8
    assert _batch_norm_line(tiny_config, four) is None


def test_scaling_the_batch_scales_the_learning_rates_alone(tiny_config):
    # 10 steps of 6 images are an epoch of the 60, and 5 of 12.
    tiny_config.batch_size = tiny_config.model.batch_norm_group = 6
    tiny_config.mix_group = 2
    tiny_config.epochs = 10.0
    tiny_config.optim.warmup_epochs = 2.0
    tiny_config.optim.warmup_learning_rate = 0.01
    tiny_config.optim.final_learning_rate = 0.001
    small = build(tiny_config)
    tiny_config.scale_batch = 2.0
    large = build(tiny_config)
    assert large.plan.batch_size == 12 and tiny_config.batch_size == 6
    assert large.plan.steps_per_epoch == small.plan.steps_per_epoch / 2
    assert large.plan.total_steps == small.plan.total_steps // 2 == 50
    for epoch in (2, 5, 9):  # after the warm-up
        rates = [x.schedule(epoch * x.plan.steps_per_epoch) for x in (small, large)]
        np.testing.assert_allclose(rates[1], 2 * rates[0], rtol=1e-5)
    optim = scaled(tiny_config).optim
    assert optim.final_learning_rate == 0.002
    assert optim.warmup_learning_rate == 0.02
    assert optim.weight_decay == tiny_config.optim.weight_decay
    tiny_config.scale_batch = 0.3
    with pytest.raises(ValueError, match=r"scale_batch=0.3 makes batch_size=6 into 1.8"):
        build(tiny_config)


@pytest.mark.slow
def test_what_is_special_of_the_batch_is_said(tiny_config, tmp_path, capsys):
    tiny_config.epochs = 0.6
    tiny_config.scale_batch = 2.0
    tiny_config.optim.accumulate = 2
    tiny_config.shard_state = True
    train(tiny_config, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "scale_batch=2: batch 8 -> 16, learning rate 0.05 -> 0.1 (linear rule)" in said
    assert "a step computes its 16 images in micro-batches of 8" in said
    assert re.search(r"a device holds (\S+) MiB of the state's \1 MiB", said)
