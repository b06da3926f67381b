"""Defines what the GPU kernels are specialised to: sizes of blocks, dropout, emulation."""

import dataclasses
from typing import NamedTuple

from noah_jax.heads.noah.kernels import round_up
from noah_jax.heads.noah.operands import PocaShape

SMALLEST_SIDE = 16  # no side of a matrix product may be smaller


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Sizes of the blocks that the kernels work on.

    Sides of tiles are powers of two and at least 16.

    Attributes:
      inner_positions: Positions of a tile in kernels that loop over positions.
      outer_positions: Positions of a tile in kernels that loop over classes or images.
      classes: Classes of a tile.
      forward_images: Images that one program of the forward kernel goes through with the same
        weights; likewise of the kernel that writes the gradients of scores and values.
      images: Images whose gradients of the weights one program adds up.
      warps: Warps of a program.
      stages: Stages of the pipeline in which the compiler lays the loops.
      products: Whether backward writes the gradients of scores and values, one block of the head
        after another, and leaves the products with them to XLA. If not, two kernels compute
        scores and values again and multiply on the chip.
    """

    inner_positions: int
    outer_positions: int
    classes: int
    forward_images: int
    images: int
    warps: int
    stages: int = 2
    products: bool = False


class GpuPlan(NamedTuple):
    """What the kernels are specialised to.

    Attributes:
      blocks: Sizes of the blocks.
      dropout: Dropout rate on the values; 0 if it is off.
      interpret: Whether Pallas emulates the kernels.
    """

    blocks: BlockSizes
    dropout: float
    interpret: bool


def padded_channels(shape: PocaShape) -> int:
    """Counts the channels of a block as the tiles hold them, query and value together."""
    query, value = shape.block_channels
    return round_up(query, SMALLEST_SIDE) + round_up(value + bool(shape.dropout), SMALLEST_SIDE)
