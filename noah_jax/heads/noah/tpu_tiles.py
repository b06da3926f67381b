"""Plans the TPU kernels: how many images, positions and classes are worked on at a time."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax.experimental.pallas import tpu as pltpu

from noah_jax.errors import InputError
from noah_jax.heads.noah.kernels import images_per_device, round_up
from noah_jax.heads.noah.operands import PocaShape

LANES = 128
SUBLANES = 8  # channels are padded to a multiple of these
REGISTER_IMAGES = 16  # a register of bfloat16 has so many rows, one for each image
_FEWEST_IMAGES = 8  # a register of float32 has so many
_PART_ROWS = 512  # rows of the scores of a part of the positions, about
# The code of a position and a group of images is written out so often, if not for the smallest
# tile; compiling takes minutes if it is more.
_MOST_COPIES = 400
_MOST_PARTS = 14  # parts whose code stands in one loop body, if more of them make equal bodies
_MIB = 2**20
# VMEM of a core in MiB, by device kind. Kernels may use at most `_VMEM_FRACTION` of it.
_VMEM = {
    **{"v4": 16, "v5p": 64, "v5": 64, "v5e": 128, "v5 lite": 128},
    **{"v6e": 128, "v6 lite": 128, "TPU7x": 64},
}
_VMEM_FRACTION = 0.78
# XLA keeps nothing of its own in the VMEM that a kernel asks for. What it needs is not known
# exactly, and registers that are stored for want of room need some too.
_VMEM_MARGIN, _VMEM_SPILLS = 1.2, 8 * _MIB


class TpuPlan(NamedTuple):
    """What the kernels are specialised to.

    Attributes:
      images: Images of a tile.
      positions: Positions of an image.
      channel_groups: One, or one for each block.
      class_chunk: Classes that are worked on at a time.
      dropout: Dropout rate on the values; 0 if it is off.
      interpret: Whether Pallas emulates the kernels.
      vmem: Bytes of VMEM that a kernel asks for.
      cores: Cores that share the steps of a kernel's grid.
      exact: Whether products of float32 are not rounded to bfloat16.
      halves: Whether the kernels read the map as it is; see `tpu_features.py`.
      joined: Whether the query and the value channels of a block stand side by side.
    """

    images: int
    positions: int
    channel_groups: int
    class_chunk: int
    dropout: float
    interpret: bool
    vmem: int
    cores: int
    exact: bool
    halves: bool = False
    joined: bool = False

    @property
    def rows(self) -> int:
        """Rows of a tile's scores."""
        return self.positions * self.images

    @property
    def padded_rows(self) -> int:
        """`rows`, padded to whole registers."""
        return round_up(self.rows, LANES)

    @property
    def image_windows(self) -> list[slice]:
        """Groups of images of a tile, each of which is worked on in one piece."""
        starts = range(0, self.images, self.group)
        return [slice(start, start + self.group) for start in starts]

    @property
    def group(self) -> int:
        """Images of a group."""
        return min(REGISTER_IMAGES, self.images)

    @property
    def parts(self) -> list["Part"]:
        """Parts of the positions of one loop body, which follow each other through the chip."""
        return _parts(self.positions, self.images)[0]

    @property
    def bodies(self) -> int:
        """How many loop bodies take the positions of a tile."""
        return _parts(self.positions, self.images)[1]

    def compiler_params(self, *semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
        """Options for the compiler.

        Args:
          *semantics: Of each axis of the grid, whether cores may share it ("parallel") or its
            steps follow each other ("arbitrary").
        """
        return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=self.vmem)


class Part(NamedTuple):
    """Some of the positions of a tile.

    Attributes:
      start: The first.
      positions: How many.
    """

    start: int
    positions: int

    def padded_rows(self, plan: TpuPlan) -> int:
        """Rows of the part's scores, padded to whole registers."""
        return round_up(self.positions * plan.images, LANES)


def _parts(positions: int, images: int) -> tuple[list[Part], int]:
    """Cuts the positions of a tile into parts whose rows fill whole registers, but for the last.

    Returns:
      The parts of one loop body, and the number of bodies.
    """
    step = LANES // math.gcd(images, LANES)
    size = max(step, _PART_ROWS // images // step * step)
    if positions > size * _MOST_PARTS:
        for equal in range(size, 0, -step):
            number = positions // equal
            most = max(n for n in range(1, _MOST_PARTS + 1) if number % n == 0)
            if positions % equal == 0 and most > 1:
                return [Part(n * equal, equal) for n in range(most)], number // most
    # While the first part is multiplied for the first time, there is no softmax to compute.
    first = step if positions > size else 0
    starts = [*range(0, first, step), *range(first, positions, size)]
    if len(starts) > 1 and positions - starts[-1] < size // 2:
        starts.pop()
    ends = [*starts[1:], positions]
    return [Part(start, end - start) for start, end in zip(starts, ends, strict=True)], 1


def vmem_limit() -> int:
    """Finds how many bytes of VMEM a kernel may take on the devices of the mesh.

    Without a mesh, the devices are those of this process. Falls back to the smallest known VMEM
    for unknown TPUs, and to v5e's if there is no TPU (interpret mode).
    """
    kind = getattr(_device(), "device_kind", "")
    size = min(_VMEM.values()) if kind.startswith("TPU") else _VMEM["v5e"]
    return int(_VMEM_FRACTION * _MIB * _VMEM.get(kind.removeprefix("TPU "), size))


def cores_of_device() -> int:
    """Finds how many cores share a kernel's grid on the devices of the mesh, or of this process.

    A v4 or v5p chip is one device of two cores.
    """
    return getattr(_device(), "num_cores", None) or 1


def _products_are_exact() -> bool:
    """Whether products of float32 are asked for in more than JAX's default precision."""
    name = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return name not in (None, "default", "fastest", "bfloat16")


def _device() -> Any:
    """Finds a device of the mesh, or else a TPU of this process; `None` if there is neither."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None and jax.default_backend() == "tpu":
        device = jax.devices()[0]
    return device


class Tile(NamedTuple):
    """Sizes of what a kernel works on at a time.

    Attributes:
      images: Images of the tile.
      rows: Padded rows of its scores.
      part_rows: Padded rows of its largest part.
      class_chunk: Classes that are worked on at a time.
      classes: All classes, padded to whole chunks.
    """

    images: int
    rows: int
    part_rows: int
    class_chunk: int
    classes: int

    def scratch_bytes(self, itemsize: int) -> int:
        """Computes the bytes of the buffers for scores and values, and for their gradients.

        Args:
          itemsize: Bytes of a number of the features.
        """
        chunk = self.class_chunk
        return 2 * self.part_rows * chunk * (3 * 4 + 2 * itemsize) + 6 * self.images * chunk * 4


def plan_tiles(
    shape: PocaShape,
    needed: Callable[[Tile], int],
    *,
    interpret: bool,
    devices: int | None,
    vmem: int | None,
    cores: int | None,
    rows: int | None = None,
    blocks: int = 1,
    thrifty: bool = False,
) -> TpuPlan:
    """Plans the largest tile of images that divides the batch and fits into VMEM.

    Args:
      shape: Shape of the head.
      needed: Computes the bytes of VMEM that a kernel needs for a tile.
      interpret: Whether Pallas emulates the kernels.
      devices: Number of devices the batch is split over; by default as the mesh says.
      vmem: Bytes of VMEM that a kernel may take; by default by the kind of device.
      cores: Cores that share a kernel's grid; by default by the kind of device.
      rows: Most rows of a tile, if that is not below the smallest tile; by default any number.
      blocks: Blocks of the head whose code is written out one after another.
      thrifty: Whether the kernel asks for no more VMEM than it needs; else it asks for `vmem`.

    Raises:
      InputError: If there is no such tile.
    """
    batch = images_per_device(shape, backend="tpu", interpret=interpret, devices=devices)
    limit = vmem_limit() if vmem is None else vmem
    class_chunk = LANES if round_up(shape.num_classes, LANES) % (2 * LANES) else 2 * LANES
    classes = round_up(shape.num_classes, class_chunk)
    smallest = round_up(REGISTER_IMAGES * shape.positions, LANES)
    wide = range(batch // REGISTER_IMAGES * REGISTER_IMAGES, 0, -REGISTER_IMAGES)
    for images in (*wide, _FEWEST_IMAGES):
        parts, bodies = _parts(shape.positions, images)
        copies = blocks * math.ceil(images / REGISTER_IMAGES) * shape.positions // bodies
        if copies > _MOST_COPIES and images > REGISTER_IMAGES:
            continue
        part_rows = max(part.positions for part in parts) * images
        sizes = round_up(images * shape.positions, LANES), round_up(part_rows, LANES)
        tile = Tile(images, *sizes, class_chunk, classes)
        if rows is not None and tile.rows > max(rows, smallest):
            continue
        if batch % images == 0 and (least := needed(tile)) <= limit:
            return TpuPlan(
                images,
                shape.positions,
                shape.channel_groups,
                class_chunk,
                shape.dropout,
                interpret,
                min(limit, int(_VMEM_MARGIN * least) + _VMEM_SPILLS) if thrifty else limit,
                cores_of_device() if cores is None else cores,
                _products_are_exact(),
            )
    if batch % _FEWEST_IMAGES or not batch:
        raise InputError(
            f"the TPU kernel takes a multiple of {_FEWEST_IMAGES} images a device, got {batch}"
        )
    raise InputError("the features and weights of a block do not fit into VMEM")
