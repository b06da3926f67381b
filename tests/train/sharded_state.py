"""Trains on eight CPU devices that replicate the state or share it; see test_sharded_state.py."""

import json
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from noah_jax import distributed
from noah_jax.aot import hlo
from noah_jax.runs.checkpoints import Checkpoints
from noah_jax.train.setup import TrainSetup, build
from tests.helpers import make_tiny_config

STEPS = 2


def _resnet(data: str) -> ConfigDict:
    config = make_tiny_config(data)
    config.batch_size = config.eval_batch_size = 16
    config.optim.clip_grad_norm = 1.0
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.epsilon = 1e-3  # Rounding would decide the update where the gradient is zero.
    config.erase_prob = config.cutmix = 0.0  # They take long to compile, and see the whole batch.
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


def _compiled(setup: TrainSetup) -> Any:
    """Compiles the training step alone."""
    return setup.steps.trace_train_step().lower().compile()


def _trained(setup: TrainSetup, step: Any, first: Any = None):
    """Returns the fresh state, or `first`, the state after some steps, and the norms."""
    if first is None:
        state = setup.states.create()
        first = jax.tree.map(np.asarray, state)
    else:
        state = jax.device_put(first, setup.states.shardings)
    for _, batch in zip(range(STEPS), setup.inputs.train_batches(0), strict=False):
        state, metrics = step(state, batch)
    norms = [metrics.grad_norm, metrics.param_norm, metrics.update_norm]
    return first, state, list(map(float, norms))


def _eval_loss(setup: TrainSetup, state: Any, eval_step: Any) -> float:
    metrics = setup.steps.empty_eval_metrics()
    for batch in setup.inputs.eval_batches():
        metrics = eval_step(state["params"], state["stats"], batch, metrics)
    return float(metrics.loss.total)


def _difference(one: Any, other: Any) -> float:
    """Returns the largest difference, relative to the largest value of the array or to 1."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    pairs = [[np.asarray(x, np.float64) for x in pair] for pair in pairs]
    return max(np.abs(a - b).max() / max(np.abs(a).max(), 1) for a, b in pairs)


def _joins_shards(setup: TrainSetup) -> bool:
    """Says whether rows that were placed on each device by itself are a batch like any other."""
    rows = {"image": np.arange(setup.mesh.size * 6).reshape(-1, 3)}
    devices = distributed.row_devices(setup.mesh)
    shards = map(jax.device_put, np.split(rows["image"], len(devices)), devices)
    joined = {"image": distributed.join_shards(list(shards), setup.mesh)}
    joined = distributed.put_batch(joined, setup.mesh)["image"]
    expected = distributed.put_batch(rows, setup.mesh)["image"]
    return joined.sharding == expected.sharding and bool((joined == expected).all())


def _save(folder: str, state: Any) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(STEPS, state)
    checkpoints.close()


def _restored(folder: str, setup: TrainSetup, state: Any) -> dict[str, float]:
    """Says how a restored state differs from what was saved, and what a device holds of it."""
    checkpoints = Checkpoints(folder)
    restored = checkpoints.restore(setup.states.abstract())
    checkpoints.close()
    return {
        "difference": _difference(state, restored),
        "bytes": distributed.device_bytes(restored),
        "devices": setup.mesh.size,
    }


def main(data: str, folder: str) -> None:
    """Prints what the test looks at, as JSON."""
    replicated = build(_mixer(data))
    config = _mixer(data)
    config.shard_state = True
    sharded = build(config)
    on_four = build(config, mesh=distributed.make_mesh(jax.devices()[:4]))
    (step, evaluate), (sharded_step, sharded_evaluate) = (
        setup.steps.compile() for setup in (replicated, sharded)
    )
    first, state, norms = _trained(replicated, step)
    sharded_first, sharded_state, sharded_norms = _trained(sharded, sharded_step)
    arrays = jax.tree.leaves(sharded_state)
    found = {
        "devices": jax.device_count(),
        "first": _difference(first, sharded_first),
        "state": _difference(state, sharded_state),
        "loss": [
            _eval_loss(replicated, state, evaluate),
            _eval_loss(sharded, sharded_state, sharded_evaluate),
        ],
        "bytes": [distributed.device_bytes(s) for s in (state, sharded_state)],
        "real_bytes": sum(x.addressable_shards[0].data.nbytes for x in arrays),
        "arguments": [s.memory_analysis().argument_size_in_bytes for s in (step, sharded_step)],
        "joined": _joins_shards(replicated),
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
    setup = build(config)
    _, accumulated, accumulated_norms = _trained(setup, _compiled(setup), sharded_first)
    found["micro_batches"] = _difference(state, accumulated)
    found["norms"] = [norms, sharded_norms, accumulated_norms]
    print(json.dumps(found))


def batch_norm_groups(data: str) -> None:
    """Prints the same for BatchNorm groups of micro-batches, which span four devices each."""
    config = _resnet(data)
    config.optim.accumulate = 2
    config.shard_state = True
    setups = build(_resnet(data)), build(config)
    states = [_trained(setup, _compiled(setup))[1] for setup in setups]
    print(json.dumps({"micro_batches": _difference(*states)}))


if __name__ == "__main__":
    data, *folder = sys.argv[1:]
    if folder:
        main(data, *folder)
    else:
        batch_norm_groups(data)
