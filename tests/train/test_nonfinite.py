"""Checks that non-finite losses and weights are found, written down and not saved."""

import json

import jax.numpy as jnp
import pytest

from noah_jax.errors import NonFiniteError
from noah_jax.train import main, train
from noah_jax.train.nonfinite import finite_leaves, first_bad_step


def test_each_array_is_looked_at():
    tree = {"a": {"b": jnp.array([1.0, jnp.inf])}, "c": (jnp.zeros(3), jnp.array([jnp.nan]))}
    tree["count"] = jnp.int32(3)
    assert {k: bool(v) for k, v in finite_leaves(tree).items()} == {
        "a/b": False,
        "c/0": True,
        "c/1": False,
    }


def test_the_first_bad_step():
    losses = [(4, jnp.float32(1)), (5, jnp.float32(jnp.inf)), (6, jnp.float32(jnp.nan))]
    assert first_bad_step(losses) == 5
    assert first_bad_step(losses[:1]) is None


@pytest.fixture
def plain_config(tiny_config):
    """A run without augmentation and average, which compiles faster."""
    tiny_config.update(erase_prob=0.0, mixup=0.0, cutmix=0.0, mix_group=None, ema_decay=None)
    tiny_config.optim.schedule = "constant"
    return tiny_config


def test_a_diverging_run_stops_before_it_saves(plain_config, tmp_path):
    plain_config.optim.learning_rate = 1e30
    with pytest.raises(NonFiniteError, match="not finite at step"):
        train(plain_config, str(tmp_path))
    (path,) = tmp_path.glob("nonfinite-*.json")
    report = json.loads(path.read_text())
    assert report["step"] <= 3 and report["learning_rate"] == pytest.approx(1e30)
    assert len(set(report["image_indices"])) == 8
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]


def test_weights_that_overflow_at_the_last_step_before_a_save(plain_config, tmp_path):
    # The loss of step 1 is that of the fresh weights: finite. What the step makes of them is not.
    plain_config.optim.learning_rate = 1e39  # infinite in float32
    plain_config.checkpoint_every = 1
    with pytest.raises(NonFiniteError, match=r"arrays, such as .* not finite at step 1;"):
        train(plain_config, str(tmp_path))


def test_incomplete_or_wrong_words_on_other_processes(tmp_path, capsys):
    command = ["--config=configs/quickstart.py", f"--workdir={tmp_path / 'new'}"]
    assert main([*command, "--coordinator=localhost:1", "--num_processes=2"]) == 1
    assert "--process_id are needed together" in capsys.readouterr().err
    words = ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"]
    assert main([*command, *words]) == 1
    assert "process 2 of 2" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
