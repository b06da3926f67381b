"""Tests what log lines call the measures of a task."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.config import default_config
from noah_jax.tasks.metrics import TrainMetrics
from noah_jax.tasks.multi_label import MultiLabel, sigmoid_loss
from noah_jax.tasks.single_label import SingleLabel
from noah_jax.tasks.task import describe
from noah_jax.train.progress import Progress
from noah_jax.train.step import StepMetrics
from noah_jax.train.wait_notice import WaitNotice

VALUES = {"top1": 66.666, "top5": 100.0}


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_the_top5_of_few_classes_is_left_out(num_classes):
    assert describe(VALUES, num_classes) == "top-1 66.67 %"


@pytest.mark.parametrize("num_classes", [6, 1000, None])
def test_the_top5_of_more_classes_is_told(num_classes):
    assert describe(VALUES, num_classes) == "top-1 66.67 %, top-5 100.00 %"


def test_the_log_says_what_is_right(tmp_path, capsys):
    averages = TrainMetrics.single_from_model_output(
        loss=jnp.ones(3), top1=jnp.array([1.0, 1.0, 0.0]), learning_rate=0.1
    )
    norms = dict.fromkeys(("grad_norm", "param_norm", "update_norm"), jnp.ones(()))
    metrics = StepMetrics(**vars(averages), **norms)
    tasks = {"accuracy": SingleLabel(), "images with a right top class": _multi_label()}
    for words, task in tasks.items():
        progress = Progress(
            tmp_path,
            types.SimpleNamespace(write=lambda *values: None),
            plan=types.SimpleNamespace(batch_size=3, steps_per_epoch=10, total_steps=20),
            mesh=types.SimpleNamespace(size=1, devices=np.array(jax.devices()[:1])),
            schedule=lambda step: 0.1,
            image_indices=lambda step: [],
            step_flops=None,
            start_step=0,
            started=0.0,
            compile_seconds=0.0,
            accuracy_words=task.accuracy_words,
            wait_notice=WaitNotice(default_config().data),
        )
        progress.log(1, metrics)
        progress.pause()
        assert f"  {words} 66.67 %  " in capsys.readouterr().out


def _multi_label() -> MultiLabel:
    return MultiLabel(num_classes=3, loss=sigmoid_loss, capacity=0)
