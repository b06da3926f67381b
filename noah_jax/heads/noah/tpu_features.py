"""How features reach the TPU kernel of `tpu.py`, and how their gradients leave it.

`Tiles` are made for the kernel out of any features, which costs several copies of them. `Halves` is
the map of a transformer or an MLP as it is: of 128 images XLA lays DeiT-Tiny's 192 channels out as
`[positions, channels, images]`, so nothing is copied. Where the channels fill whole registers XLA
has them last, so such maps are cut into tiles.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from noah_jax.heads.noah.kernels import Pair, Ref, round_up
from noah_jax.heads.noah.operands import flatten_positions
from noah_jax.heads.noah.tpu_tiles import SUBLANES, TpuPlan


class Tiles(NamedTuple):
    """The query's part and the value's part, or Pallas references to blocks of them.

    Attributes:
      query: `[tiles, channel groups, channels, padded rows]`.
      value: The same.
    """

    query: Any
    value: Any

    @classmethod
    def of_parts(cls, plan: TpuPlan, parts: Pair) -> Self:
        """Cuts parts `[channel groups, batch, positions, channels]` into padded tiles."""

        def tiles(part: jax.Array) -> jax.Array:
            channel_groups, batch, positions, channels = part.shape
            shape = (channel_groups, batch // plan.images, plan.images, positions, channels)
            part = part.reshape(shape).transpose(1, 0, 4, 3, 2)
            part = part.reshape(-1, channel_groups, channels, plan.rows)
            padding = round_up(channels, SUBLANES) - channels, plan.padded_rows - plan.rows
            return jnp.pad(part, [(0, 0), (0, 0), (0, padding[0]), (0, padding[1])])

        return cls(*parts.map(tiles))

    @property
    def dtype(self) -> Any:
        """Dtype of the features."""
        return self.query.dtype

    def num_tiles(self, plan: TpuPlan) -> int:
        """Returns the number of tiles."""
        return self.query.shape[0]

    def specs(self, plan: TpuPlan) -> Self:
        """Takes a tile and a channel group; one group serves all blocks."""

        def spec(part: jax.Array) -> pl.BlockSpec:
            _, channel_groups, channels, rows = part.shape
            return pl.BlockSpec(
                (1, 1, channels, rows),
                lambda block, tile: (tile, block if channel_groups > 1 else 0, 0, 0),
            )

        return type(self)(*map(spec, self))

    def column_shapes(self, plan: TpuPlan) -> Pair | None:
        """Gives the buffers for `[channels, padded rows]`, which a tile is already."""
        return None

    def load_columns(self, plan: TpuPlan, columns_ref: Pair | None) -> Pair:
        """Returns references to the channels of a block, `[channels, padded rows]`."""
        return Pair(*(ref.at[0, 0] for ref in self))

    def load_rows(self, plan: TpuPlan, rows_ref: tuple[Ref, ...]) -> None:
        """Writes the channels of a block into the buffers of `row_shapes`."""
        _write_rows(rows_ref, slice(None), [ref[0, 0] for ref in self])

    def store_gradients(self, plan: TpuPlan, d_columns_ref: Pair) -> None:
        """Writes the gradients of the columns into blocks of the features' gradients."""
        for ref, columns_ref in zip(self, d_columns_ref, strict=True):
            ref[0, 0] = columns_ref[...].astype(ref.dtype)


class Halves(NamedTuple):
    """The whole map, or a Pallas reference to a block; the query's part is its first half.

    Attributes:
      whole: `[positions, 2, channels of a part, batch]`.
    """

    whole: Any

    @classmethod
    def of_features(cls, plan: TpuPlan, features: jax.Array) -> Self:
        """Takes a map `[batch, *spatial, channels]`."""
        batch, channels = features.shape[0], features.shape[-1]
        # XLA would change the dtype of the gradient before this reshape, in a copy of its own.
        features = jax.lax.optimization_barrier(flatten_positions(features))
        return cls(features.transpose(1, 2, 0).reshape(plan.positions, 2, channels // 2, batch))

    @property
    def dtype(self) -> Any:
        """Dtype of the features."""
        return self.whole.dtype

    def num_tiles(self, plan: TpuPlan) -> int:
        """Returns the number of tiles."""
        return self.whole.shape[-1] // plan.images

    def specs(self, plan: TpuPlan) -> Self:
        """Takes the query and the value channels of a block, of a tile of images."""
        positions, halves, channels, _ = self.whole.shape
        width = channels // plan.channel_groups
        return type(self)(
            pl.BlockSpec(
                (positions, halves, width, plan.images), lambda block, tile: (0, 0, block, tile)
            )
        )

    def column_shapes(self, plan: TpuPlan) -> Pair | None:
        """Gives the buffers for `[channels, rows]`."""
        width = self.whole.shape[2] // plan.channel_groups
        return Pair(*[pltpu.VMEM((width, plan.rows), self.dtype)] * 2)

    def load_columns(self, plan: TpuPlan, columns_ref: Pair | None) -> Pair:
        """Writes the channels of a block, `[channels, rows]`, and returns their references."""
        assert columns_ref is not None
        for half, column_ref in enumerate(columns_ref):
            for position in range(plan.positions):
                column_ref[:, _images(plan, position)] = self.whole[position, half]
        return columns_ref

    def load_rows(self, plan: TpuPlan, rows_ref: tuple[Ref, ...]) -> None:
        """Writes the channels of a block into the buffers of `row_shapes`."""
        for position in range(plan.positions):
            columns = [self.whole[position, half] for half in (0, 1)]
            _write_rows(rows_ref, _images(plan, position), columns)

    def store_gradients(self, plan: TpuPlan, d_columns_ref: Pair) -> None:
        """Writes the gradients of the columns into a block of the map's gradient."""
        for half, columns_ref in enumerate(d_columns_ref):
            for position in range(plan.positions):
                gradient = columns_ref[:, _images(plan, position)]
                self.whole[position, half] = gradient.astype(self.whole.dtype)


Features = Tiles | Halves


def row_shapes(plan: TpuPlan, widths: Sequence[int], dtype: Any) -> tuple:
    """Gives the buffers for the channels of a block, `[padded rows, channels]`.

    There are one for the query and one for the value, or one for both side by side.

    Args:
      plan: Plan of the kernel.
      widths: Query and value channels of a block, padded to whole registers.
      dtype: Dtype of the features.
    """
    widths = [sum(widths)] if plan.joined else widths
    return tuple(pltpu.VMEM((plan.padded_rows, width), dtype) for width in widths)


def _write_rows(rows_ref: tuple[Ref, ...], rows: slice, columns: list[jax.Array]) -> None:
    """Writes `[channels, rows]` of the query and the value, transposed."""
    if len(rows_ref) == 1:  # half as many stores as for two
        columns = [jnp.concatenate(columns)]
    for ref, column in zip(rows_ref, columns, strict=True):
        ref[rows] = column.T


def _images(plan: TpuPlan, position: int) -> slice:
    """Finds the rows of the images of a position."""
    return slice(position * plan.images, (position + 1) * plan.images)
