"""Predicts how long the GPU kernels take, from their traffic and their products.

A kernel's time is the sum of three terms: the bytes that its programs read and write, the
operations of its products with padding, and the scores whose softmax it computes. The rates were
fitted to ten times measured on one H100 80GB (jax 0.11.2, bfloat16, batch 128, 1000 classes, five
feature maps, forward and backward). They meet those within 30 %, and forward and backward together
within 20 % (`tests/heads/noah/test_gpu_model.py` has the table). Tiles of other sizes, several
images a program and the products by XLA have not been measured: there the model extrapolates.
"""

from typing import NamedTuple

from noah_jax.heads.noah.gpu_blocks import BlockSizes, padded_channels
from noah_jax.heads.noah.kernels import ceil_div, round_up
from noah_jax.heads.noah.operands import PocaShape

# Rates of an H100, in units a millisecond. Fitted:
_BYTES = 6.66e9  # most of them come from L2
_OPERATIONS = 229e9  # of programs of eight warps, or that have a multiprocessor for themselves
_OVERLAPPED_OPERATIONS = 990e9  # of several programs of four warps each: the card's peak
_SCORES = 1.44e9
# Assumed, for the products that XLA computes: cuBLAS on matrices of some hundred rows, and HBM.
_XLA_OPERATIONS = 300e9
_XLA_BYTES = 2.5e9

_MULTIPROCESSORS = 132
_SHARED_BYTES = 232_448  # of a multiprocessor


class Cost(NamedTuple):
    """What one kernel does on one GPU.

    Attributes:
      programs: Number of its programs.
      waves: How often all multiprocessors start one program each.
      bytes: Bytes that the programs read and write, mostly from and to L2.
      operations: Operations of the products, padding included.
      scores: Scores that it computes, padding included.
      register_bytes: Bytes of weights and accumulators that a program holds, of the
        262,144 of a multiprocessor.
      shared_bytes: Bytes of weights and features that a program holds in shared memory, all
        stages of the pipeline counted, of the 232,448 of a multiprocessor.
    """

    programs: int
    waves: float
    bytes: int
    operations: int
    scores: int
    register_bytes: int
    shared_bytes: int

    def milliseconds(self, warps: int) -> float:
        """Predicts the time of the kernel, of whose programs each has so many warps."""
        overlap = warps <= 4 and 2 * self.shared_bytes <= _SHARED_BYTES
        rate = _OVERLAPPED_OPERATIONS if overlap else _OPERATIONS
        return self.bytes / _BYTES + self.operations / rate + self.scores / _SCORES


def kernel_costs(shape: PocaShape, batch: int, blocks: BlockSizes) -> dict[str, Cost]:
    """Counts what each kernel does.

    Args:
      shape: Shape of the head.
      batch: Images on one GPU.
      blocks: Sizes of the blocks.

    Returns:
      The costs of "forward" and either of "features" and "weights" or, with `blocks.products`, of
      "gradients".
    """
    return _Counter(shape, batch, blocks).costs()


def milliseconds(shape: PocaShape, batch: int, blocks: BlockSizes) -> tuple[float, float]:
    """Predicts the time of a forward pass and that of a backward pass on an H100.

    Args:
      shape: Shape of the head.
      batch: Images on one GPU.
      blocks: Sizes of the blocks.
    """
    times = {
        name: cost.milliseconds(blocks.warps)
        for name, cost in kernel_costs(shape, batch, blocks).items()
    }
    forward = times.pop("forward")
    backward = sum(times.values())
    if blocks.products:
        scores = batch * shape.head_num * shape.positions * shape.num_classes
        channels = sum(shape.block_channels)
        # Each of two arrays meets the weights and the features, and is read for both.
        backward += 4 * scores * channels / _XLA_OPERATIONS
        backward += 4 * scores * shape.dtype.itemsize / _XLA_BYTES
    return forward, backward


class _Counter:
    def __init__(self, shape: PocaShape, batch: int, blocks: BlockSizes):
        self.batch, self.blocks = batch, blocks
        self.head_num, self.num_classes = shape.head_num, shape.num_classes
        self.itemsize = shape.dtype.itemsize
        self.channels, self.padded = sum(shape.block_channels), padded_channels(shape)
        self.positions = shape.positions
        self.tiles = ceil_div(shape.num_classes, blocks.classes)

    def costs(self) -> dict[str, Cost]:
        blocks = self.blocks
        groups = ceil_div(self.batch, blocks.forward_images)
        results = 8 * self.batch * self.head_num * self.num_classes
        costs = {"forward": self._by_class_tile(groups, blocks.inner_positions, 1, results)}
        if blocks.products:
            scores = self.batch * self.head_num * self.positions * self.num_classes
            written = 2 * scores * self.itemsize + results
            costs["gradients"] = self._by_class_tile(groups, blocks.outer_positions, 1, written)
            return costs
        costs["features"] = self._features()
        chunks = ceil_div(self.batch, blocks.images)
        weights = self.head_num * self.channels * self.num_classes
        # Partial sums are written, and read to be added.
        written = 8 * chunks * weights + results
        costs["weights"] = self._by_class_tile(chunks, blocks.inner_positions, 2, written)
        return costs

    def _by_class_tile(self, groups: int, tile: int, products: int, written: int) -> Cost:
        """Counts for programs that keep a tile of weights and go through a group of images."""
        per_block = self.tiles * self.head_num
        weights = groups * self.blocks.classes * self.channels
        features = self.batch * self.positions * self.channels
        read = per_block * (weights + features) * self.itemsize
        accumulators = 2 * self.blocks.classes * tile * 4
        held = self.blocks.classes * self.padded * (self.itemsize + 4 * (products - 1))
        padded = round_up(self.positions, tile)
        held += accumulators
        shared = self._shared(self.blocks.classes, tile)
        return self._cost(per_block * groups, read + written, padded, products, held, shared)

    def _shared(self, kept: int, loaded: int) -> int:
        """Counts shared memory for `kept` rows of channels and `loaded` ones in each stage."""
        return (kept + self.blocks.stages * loaded) * self.padded * self.itemsize

    def _features(self) -> Cost:
        """Counts for programs that keep a tile of features and go through the classes."""
        tile = self.blocks.outer_positions
        padded = round_up(self.positions, tile)
        programs = padded // tile * self.head_num * self.batch
        weights = self.tiles * self.blocks.classes * (self.channels * self.itemsize + 12)
        features = 2 * self.batch * self.head_num * self.positions * self.channels * self.itemsize
        held = 2 * self.blocks.classes * tile * 4 + tile * self.padded * (self.itemsize + 4)
        shared = self._shared(tile, self.blocks.classes)
        return self._cost(programs, programs * weights + features, padded, 2, held, shared)

    def _cost(
        self, programs: int, traffic: int, positions: int, products: int, held: int, shared: int
    ) -> Cost:
        scores = self.batch * self.head_num * positions * self.tiles * self.blocks.classes
        operations = 2 * products * scores * self.padded
        waves = programs / _MULTIPROCESSORS
        return Cost(programs, waves, traffic, operations, scores, held, shared)
