"""Eight CPU devices that hold the same state, or share it; run by test_sharded_state.py."""

import json
import sys

import jax
import numpy as np
from conftest import make_tiny_config

from noah_jax import distributed
from noah_jax.checkpoint import Checkpoints
from noah_jax.compile import hlo
from noah_jax.experiment import build

STEPS = 2


def _config(data: str, **changes):
    config = make_tiny_config(data)
    config.model.width = 16
    config.model.depths = (1, 1, 1, 1)
    config.model.batch_norm_group = 2
    config.batch_size = config.eval_batch_size = 16
    config.mix_group = 16
    config.optim.clip_grad_norm = 1.0
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.epsilon = 1e-3
    config.update_from_flattened_dict(changes)
    return config


def _run(experiment):
    """The state before and after some steps, the evaluation's loss, the compiled step."""
    train_step, eval_step = experiment.compile_steps()
    first = state = experiment.init_state()
    first = jax.tree.map(np.asarray, first)
    for _, batch in zip(range(STEPS), experiment.train_batches(0), strict=False):
        state, _ = train_step(state, batch)
    metrics = experiment.empty_eval_metrics()
    for batch in experiment.eval_batches():
        metrics = eval_step(state["params"], state["stats"], batch, metrics)
    return first, state, float(metrics.loss.total), train_step


def _difference(one, other) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()) for a, b in pairs)


def _restored(folder: str, experiment):
    checkpoints = Checkpoints(folder)
    state = checkpoints.restore(experiment.abstract_state())
    checkpoints.close()
    return state


def _save(folder: str, state) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(STEPS, state)
    checkpoints.close()


def main(data: str, folder: str) -> None:
    """Prints what the test looks at, as JSON."""
    replicated = build(_config(data))
    sharded = build(_config(data, shard_state=True))
    parts = build(
        _config(data, **{"shard_state": True, "optim.accumulate": 2, "model.batch_norm_group": 4})
    )
    whole = build(_config(data, **{"model.batch_norm_group": 4}))
    first, state, loss, step = _run(replicated)
    sharded_first, sharded_state, sharded_loss, sharded_step = _run(sharded)
    found = {
        "devices": jax.device_count(),
        "first": _difference(first, sharded_first),
        "state": _difference(state, sharded_state),
        "loss": abs(loss - sharded_loss) / loss,
        "bytes": [distributed.device_bytes(s) for s in (state, sharded_state)],
        "real_bytes": sum(
            x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(sharded_state)
        ),
        "arguments": [s.memory_analysis().argument_size_in_bytes for s in (step, sharded_step)],
        "donated": [hlo.donated_parameters(s.as_text()) for s in (step, sharded_step)],
        "parts": _difference(_run(parts)[1], _run(whole)[1]),
    }
    _save(f"{folder}/sharded", sharded_state)
    _save(f"{folder}/replicated", state)
    four = distributed.make_mesh(jax.devices()[:4])
    for kind, saved in (("sharded", sharded_state), ("replicated", state)):
        others = {
            "replicated on 8": replicated,
            "sharded on 8": sharded,
            "sharded on 4": build(_config(data, shard_state=True), mesh=four),
            "replicated on 4": build(_config(data), mesh=four),
        }
        for name, experiment in others.items():
            restored = _restored(f"{folder}/{kind}", experiment)
            found[f"{kind} to {name}"] = [
                _difference(saved, restored),
                distributed.device_bytes(restored),
            ]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
