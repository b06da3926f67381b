"""Makes the state of a training run and places it on the devices.

The state is a dict of `step`, `params`, `stats` (BatchNorm's running statistics), `opt_state` and
`metrics`, and of `ema` if a moving average of parameters and statistics is kept.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from noah_jax import distributed
from noah_jax.compilation import QUICK_COMPILE
from noah_jax.models.base import Model
from noah_jax.tasks.metrics import TrainMetrics
from noah_jax.train.param_groups import trainable

State = dict[str, Any]


def init_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    ema: bool = False,
    frozen: Collection[str] = (),
) -> State:
    """Returns a fresh state.

    Call it under `jit` with `out_shardings` to create the arrays directly on their devices.

    Args:
      model: The model.
      optimizer: The optimizer.
      seed: Seed for the initial weights.
      ema: Whether to keep a moving average, which starts at the initial weights.
      frozen: Paths of the parameters that are not trained; the optimizer does not see them.
    """
    params, stats = model.init(jax.random.key(seed))
    average = {"ema": {"params": params, "stats": stats}} if ema else {}
    return average | {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "stats": stats,
        "opt_state": optimizer.init(trainable(params, frozen)),
        "metrics": TrainMetrics.empty(),
    }


@dataclasses.dataclass(frozen=True)
class StateMaker:
    """Makes the state of one run.

    Attributes:
      model: The model.
      optimizer: The optimizer.
      seed: Seed for the initial weights.
      ema: Whether to keep a moving average of parameters and statistics.
      frozen: Paths of the parameters that are not trained.
      mesh: The devices.
      sharded: Whether the devices share the state instead of each holding all of it.
    """

    model: Model
    optimizer: optax.GradientTransformation
    seed: int
    ema: bool
    frozen: frozenset[str]
    mesh: Mesh
    sharded: bool

    def make(self) -> State:
        """Returns a fresh state, see `init_state`; this function can be jitted and traced."""
        return init_state(self.model, self.optimizer, self.seed, ema=self.ema, frozen=self.frozen)

    @functools.cached_property
    def shardings(self) -> State:
        """The sharding of each array of the state."""
        shapes = jax.eval_shape(self.make)
        if self.sharded:
            return distributed.sharded(shapes, self.mesh)
        return jax.tree.map(lambda _: distributed.replicated(self.mesh), shapes)

    def abstract(self) -> State:
        """Returns the state as `jax.ShapeDtypeStruct`s with shardings."""
        return distributed.abstract_like(jax.eval_shape(self.make), self.shardings)

    def create(self) -> State:
        """Computes a fresh state, directly on its devices."""
        make = jax.jit(self.make, out_shardings=self.shardings, compiler_options=QUICK_COMPILE)
        return make()
