"""Weights at which a model starts in place of fresh ones."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax.nn.modules import Tree


class Start(NamedTuple):
    """Weights by their path, such as `head/linear/kernel`; what is missing is drawn.

    Attributes:
      params: float32 parameters.
      stats: BatchNorm's statistics.
    """

    params: Mapping[str, np.ndarray]
    stats: Mapping[str, np.ndarray]

    def complete(
        self,
        draw: Callable[[jax.Array], tuple[Tree, Tree]],
        abstract: tuple[Tree, Tree],
        key: jax.Array,
    ) -> tuple[Tree, Tree]:
        """Returns parameters and statistics; those that are missing are drawn.

        Args:
          draw: Draws all of them from a key.
          abstract: Their shapes.
          key: Random key.
        """
        names = [flatten_dict(tree, sep="/").keys() for tree in abstract]
        fresh: list[dict[str, jax.Array]] = [{}, {}]
        if any(there - given.keys() for there, given in zip(names, self, strict=True)):
            fresh = jax.jit(lambda key: self._missing(draw(key)))(key)
        params, stats = (
            unflatten_dict(
                {x: jnp.asarray(given[x]) if x in given else drawn[x] for x in there}, sep="/"
            )
            for there, given, drawn in zip(names, self, fresh, strict=True)
        )
        return params, stats

    def _missing(self, drawn: tuple[Tree, Tree]) -> list[dict[str, jax.Array]]:
        """Returns what is not given; under `jit` the rest is not computed."""
        return [
            {x: leaf for x, leaf in flatten_dict(tree, sep="/").items() if x not in given}
            for tree, given in zip(drawn, self, strict=True)
        ]
