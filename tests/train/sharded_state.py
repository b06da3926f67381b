"""Eight CPU devices that hold the same state, or share it; run by test_sharded_state.py."""

import json
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from noah_jax import distributed
from noah_jax.aot import hlo
from noah_jax.runs.checkpoints import Checkpoints
from noah_jax.train.setup import Experiment, build
from tests.helpers import make_tiny_config

STEPS = 2


def _resnet(data: str) -> ConfigDict:
    config = make_tiny_config(data)
    config.model.depths = (1, 1, 1, 1)
    config.batch_size = config.eval_batch_size = 16
    config.optim.clip_grad_norm = 1.0
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.epsilon = 1e-3  # where no gradient is, rounding would decide the update
    return config


def _mixer(data: str) -> ConfigDict:
    config = _resnet(data)
    config.model.name = "noah_mixer_s16_224"
    del config.model.stem, config.model.depths
    config.model.width = 64
    config.model.depth = 1
    config.model.image_size = 32
    config.model.batch_norm_group = None
    config.model.drop_path_rate = 0.2
    config.data.pad = 8
    return config


def _trained(experiment: Experiment):
    """A fresh state, the same after some steps, and the compiled step."""
    step = experiment.trace_train_step().lower().compile()
    first = state = experiment.init_state()
    first = jax.tree.map(np.asarray, first)
    for _, batch in zip(range(STEPS), experiment.train_batches(0), strict=False):
        state, _ = step(state, batch)
    return first, state, step


def _eval_loss(experiment: Experiment, state: Any) -> float:
    _, eval_step = experiment.compile_steps()
    metrics = experiment.empty_eval_metrics()
    for batch in experiment.eval_batches():
        metrics = eval_step(state["params"], state["stats"], batch, metrics)
    return float(metrics.loss.total)


def _difference(one: Any, other: Any) -> float:
    """The largest, over the largest value of the array or 1."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    pairs = [[np.asarray(x, np.float64) for x in pair] for pair in pairs]
    return max(np.abs(a - b).max() / max(np.abs(a).max(), 1) for a, b in pairs)


def _save(folder: str, state: Any) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(STEPS, state)
    checkpoints.close()


def _restored(folder: str, experiment: Experiment, state: Any) -> dict[str, float]:
    """How a restored state differs from what was saved, and what a device holds of it."""
    checkpoints = Checkpoints(folder)
    restored = checkpoints.restore(experiment.abstract_state())
    checkpoints.close()
    return {
        "difference": _difference(state, restored),
        "bytes": distributed.device_bytes(restored),
        "devices": experiment.mesh.size,
    }


def main(data: str, folder: str) -> None:
    """Prints what the test looks at, as JSON."""
    replicated = build(_mixer(data))
    config = _mixer(data)
    config.shard_state = True
    sharded = build(config)
    on_four = build(config, mesh=distributed.make_mesh(jax.devices()[:4]))
    first, state, step = _trained(replicated)
    sharded_first, sharded_state, sharded_step = _trained(sharded)
    arrays = jax.tree.leaves(sharded_state)
    found = {
        "devices": jax.device_count(),
        "first": _difference(first, sharded_first),
        "state": _difference(state, sharded_state),
        "loss": [_eval_loss(replicated, state), _eval_loss(sharded, sharded_state)],
        "bytes": [distributed.device_bytes(s) for s in (state, sharded_state)],
        "real_bytes": sum(x.addressable_shards[0].data.nbytes for x in arrays),
        "arguments": [s.memory_analysis().argument_size_in_bytes for s in (step, sharded_step)],
        "donated": [hlo.donated_parameters(s.as_text()) for s in (step, sharded_step)],
    }
    _save(f"{folder}/sharded", sharded_state)
    _save(f"{folder}/replicated", state)
    found["restored"] = {
        "sharded to replicated": _restored(f"{folder}/sharded", replicated, sharded_state),
        "sharded to fewer": _restored(f"{folder}/sharded", on_four, sharded_state),
        "replicated to sharded": _restored(f"{folder}/replicated", sharded, state),
    }

    config = _mixer(data)
    config.optim.accumulate = 2
    config.shard_state = True
    found["parts"] = _difference(state, _trained(build(config))[1])
    print(json.dumps(found))


def groups(data: str) -> None:
    """The same of BatchNorm groups of parts of a batch, which span four devices each."""
    whole = _trained(build(_resnet(data)))[1]
    config = _resnet(data)
    config.optim.accumulate = 2
    config.shard_state = True
    print(json.dumps({"parts": _difference(whole, _trained(build(config))[1])}))


if __name__ == "__main__":
    data, *folder = sys.argv[1:]
    if folder:
        main(data, *folder)
    else:
        groups(data)
