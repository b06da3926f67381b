"""What the NOAH head costs beside a linear one.

    python -m noah_jax.benchmark --what head [--models NAME,NAME...] [--heads NAME,NAME...]
        [--batch 32] [--rounds 5]
    python -m noah_jax.benchmark --what head --topology v5e:1x1 [--models ...] [--heads ...]
        [--batch 128] [--depth 2]

The first form times heads alone on this process's device, in float32, on the feature maps of
published models: forward, and forward with the gradients of everything, where the cotangent
depends on the output; with PyTorch's (CPU) where that is installed. They take turns in one
process. Beside them the floor: the operations of the products, and the bytes that come in and
go out. The second form compiles whole train steps for TPUs or GPUs (h100:1) that need not be here
(`--depth` cuts the backbones to so many blocks); see `ahead`. `--heads` chooses among the
implementations of NOAH; a linear head is always there to compare with.
"""

import functools
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax.benchmark import ahead
from noah_jax.cli import Parser, positive
from noah_jax.errors import InputError
from noah_jax.heads.noah.poca import IMPLEMENTATIONS, Projection, poca
from noah_jax.models import create_model
from noah_jax.models.base import Model

MODELS = (
    "noah_resnet50",
    "noah_mobilenetv2_100",
    "noah_deit_tiny_patch16_224",
    "noah_deit_small_patch16_224",
    "noah_deit_base_patch16_224",
    "noah_deit_base_patch16_384",
    "noah_pvt_tiny",
)
_TARGET_MODELS = ("noah_deit_tiny_patch16_224",)
_HEADS = ("reference", "auto")
_BATCH, _TARGET_BATCH = 32, 128
_REST = 0.2  # seconds in which the other library's threads come to rest
_AGREE = 1e-3  # of the logits' standard deviation


class Shape(NamedTuple):
    """A head and the feature map before it.

    Attributes:
      spatial: rows and columns.
      channels: of the map.
      head_num: N.
      key_ratio: r.
      num_classes: K.
      spatial_major: see `noah_jax.NOAH`.
    """

    spatial: tuple[int, ...]
    channels: int
    head_num: int
    key_ratio: float
    num_classes: int
    spatial_major: bool = False

    def flops(self, batch: int) -> int:
        """Of the products of a forward pass; gradients take twice as many again."""
        return 2 * batch * math.prod(self.spatial) * self.channels * self.num_classes

    def bytes(self, batch: int) -> int:
        """Of float32 features, weights and logits, each once."""
        features = batch * math.prod(self.spatial) * self.channels
        weights = (self.channels + 2 * self.head_num) * self.num_classes
        return 4 * (features + weights + batch * self.num_classes)


class Cost(NamedTuple):
    """Medians of one head.

    Attributes:
      forward: seconds.
      both: seconds of forward and backward.
      forward_bytes: temporary memory; `None` where it is not known (PyTorch).
      both_bytes: likewise.
    """

    forward: float
    both: float
    forward_bytes: int | None
    both_bytes: int | None


def head_shape(model: Model) -> Shape:
    """The shape of a model's NOAH head."""
    features = create_model(model.name, **(model.arguments | {"features_only": True}))
    images = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
    out, _ = jax.eval_shape(
        functools.partial(features.apply, train=False), *features.abstract(), images
    )
    return Shape(
        out.shape[1:-1],
        out.shape[-1],
        model.arguments["head_num"],
        model.arguments["key_ratio"],
        model.num_classes,
        model.architecture.spatial_major,
    )


def benchmark_head(
    shape: Shape, heads: Sequence[str], *, batch: int, rounds: int, torch: bool
) -> dict[str, Cost]:
    """The cost of each head, by its name.

    Args:
      shape: of the head.
      heads: implementations to measure beside a linear head.
      batch: images.
      rounds: measurements of each.
      torch: whether to measure PyTorch's too.

    Raises:
      ValueError: if the heads' logits differ; they would not be comparable.
    """
    features, query, value = _operands(shape, batch)
    contenders = {"linear": _ours(_linear, features, _linear_weights(shape))}
    head = functools.partial(poca, key_ratio=shape.key_ratio)
    for name in heads:
        call = functools.partial(head, implementation=name)
        contenders[name] = _ours(call, features, query, value)
    if torch:
        contenders["PyTorch"] = _torch_calls(shape, features, query, value)
    reference = functools.partial(head, implementation="reference")
    expected = np.asarray(jax.jit(reference)(features, query, value))
    for name, (forward, *_) in contenders.items():
        if name != "linear":
            error = np.abs(np.asarray(forward()) - expected).max() / expected.std()
            if not error <= _AGREE:
                raise InputError(f"{name}: the logits differ by {error:.1e} of their std")
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contenders}
    for _ in range(rounds):
        for name, (*calls, _, _) in contenders.items():
            for call, seconds in zip(calls, times[name], strict=True):
                time.sleep(_REST)
                jax.block_until_ready(call())  # wakes its threads, and warms up
                start = time.perf_counter()
                jax.block_until_ready(call())
                seconds.append(time.perf_counter() - start)
    return {
        name: Cost(*map(statistics.median, times[name]), *memory)
        for name, (_, _, *memory) in contenders.items()
    }


def _operands(shape: Shape, batch: int) -> tuple[np.ndarray, Projection, Projection]:
    random = np.random.RandomState(0)
    query_channels = int(shape.channels * shape.key_ratio)

    def projection(channels):
        size = (shape.head_num, channels // shape.head_num, shape.num_classes)
        kernel, bias = random.standard_normal(size), random.standard_normal(size[::2])
        return Projection(*((0.05 * x).astype(np.float32) for x in (kernel, bias)))

    features = random.standard_normal((batch, *shape.spatial, shape.channels))
    parts = query_channels, shape.channels - query_channels
    return features.astype(np.float32), *map(projection, parts)


def _linear_weights(shape: Shape) -> np.ndarray:
    return np.full((shape.channels, shape.num_classes), 0.01, np.float32)


def _linear(features: jax.Array, kernel: jax.Array) -> jax.Array:
    return features.mean(range(1, features.ndim - 1)) @ kernel


def _ours(head: Callable, *operands: Any) -> tuple[Callable, Callable, int, int]:
    """Calls of forward and of both passes, and the temporary memory of each."""

    def both(*operands):
        logits, vjp = jax.vjp(head, *operands)
        return logits, vjp(jnp.sin(logits))

    operands = jax.device_put(operands)
    compiled = [jax.jit(f).lower(*operands).compile() for f in (head, both)]
    memory = [c.memory_analysis().temp_size_in_bytes for c in compiled]
    forward, backward = (functools.partial(c, *operands) for c in compiled)
    return forward, backward, *memory


def _torch_calls(shape, features, query, value):
    """The original's head, from its definition: two grouped 1x1 convolutions and a softmax."""
    import torch

    split = int(shape.channels * shape.key_ratio)
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(features, -1, 1)))
    weights = []
    for kernel, bias in (query, value):
        kernel = kernel.transpose(0, 2, 1).reshape(-1, kernel.shape[1])[..., None, None]
        weights += [torch.tensor(kernel), torch.tensor(bias.reshape(-1))]
    operands = [x.requires_grad_(), *(w.requires_grad_() for w in weights)]

    def head(x, *weights):
        convolve = functools.partial(torch.nn.functional.conv2d, groups=shape.head_num)
        scores = convolve(x[:, :split], *weights[:2]).flatten(2).softmax(-1)
        values = convolve(x[:, split:], *weights[2:]).flatten(2)
        return (scores * values).sum(-1).unflatten(1, (shape.head_num, -1)).sum(1)

    def forward():
        with torch.inference_mode():
            return head(*operands).numpy()

    def both():
        logits = head(*operands)
        torch.autograd.grad(logits, operands, torch.sin(logits.detach()))

    return forward, both, None, None


def main(argv: list[str]) -> None:
    """Measures what the command line asks for and prints it."""
    parser = Parser("--what head", add_help=False)
    parser.add_argument("--models", type=lambda names: names.split(","))
    parser.add_argument("--heads", type=lambda names: names.split(","))
    parser.add_argument("--batch", type=positive)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--topology")
    parser.add_argument("--depth", type=positive)
    given = parser.parse_args(argv[1:])
    for name in given.heads or ():
        if name not in IMPLEMENTATIONS:
            raise InputError(f"--heads: one of {', '.join(IMPLEMENTATIONS)}, got {name!r}")
    mesh = ahead.topology_mesh(given.topology) if given.topology else None
    names = given.models or (_TARGET_MODELS if given.topology else MODELS)
    models = [create_model(name) for name in names]
    for model in models:
        if model.arguments["head"] != "noah":
            raise InputError(f"{model.name} has no NOAH head; did you mean noah_{model.name}")
    if mesh is not None:
        shapes = {model.name: head_shape(model) for model in models}
        batch = given.batch or _TARGET_BATCH
        ahead.print_table(mesh, given.topology, shapes, given.heads, batch, given.depth)
    else:
        _print_table(models, given.heads or _HEADS, given.batch or _BATCH, given.rounds)


def _print_table(models: list[Model], heads: Sequence[str], batch: int, rounds: int) -> None:
    torch = importlib.util.find_spec("torch") is not None
    print(
        f"heads on {jax.devices()[0].device_kind}, float32, batch {batch}, medians of {rounds}"
        " rounds; floor of forward: operations of the products, bytes in and out"
    )
    columns = "forward ms", "with backward ms", "temporary MB", "with backward MB"
    print(f"{'':28}" + "".join(f"{name:>18}" for name in columns))
    for model in models:
        shape = head_shape(model)
        size = "x".join(map(str, (*shape.spatial, shape.channels)))
        floor = f"{shape.flops(batch) / 1e9:.2f} GFLOP, {shape.bytes(batch) / 1e6:.1f} MB"
        print(f"{model.name}, {size}: {floor}")
        costs = benchmark_head(shape, heads, batch=batch, rounds=rounds, torch=torch)
        for name, cost in costs.items():
            cells = [f"{1e3 * seconds:.1f}" for seconds in cost[:2]]
            cells += ["" if memory is None else f"{memory / 1e6:.1f}" for memory in cost[2:]]
            row = f"  {name:26}" + "".join(f"{cell:>18}" for cell in cells)
            print(row.rstrip(), flush=True)
    if not torch:
        print("PyTorch is not installed, so there is nothing to compare with; pip install torch")
