"""Compiles train steps for TPUs and H100s that are not here, with each head.

The step is the training program's own, in bfloat16 with SGD and without augmentation, once with a
linear head, and once with each other kind of head or implementation of the NOAH head. It needs
`pip install libtpu`, or `pip install 'jax[cuda13]'`. XLA estimates the cycles of every operation
for TPUs but those of the NOAH head's kernels, which `noah_jax.aot.kernel_cycles` counts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from noah_jax.aot import hlo
from noah_jax.aot.head_shape import HeadShape, noah_head
from noah_jax.aot.kernel_cycles import kernel_calls, kernel_cycles
from noah_jax.aot.operations import Operation, operations
from noah_jax.benchmark.cycle_differences import print_difference
from noah_jax.benchmark.train_step import PlainStep
from noah_jax.console import working
from noah_jax.heads.registry import HEADS
from noah_jax.models import create_model

_HEADS = ("auto", "xla", "reference")


class StepCost(NamedTuple):
    """Cost of a train step on one device, as the compiler tells it.

    Attributes:
      cycles: Estimated cycles of a step without the head's kernels; 0 for GPUs.
      kernels: How often the step calls a kernel of the head.
      temporaries: Bytes of memory besides arguments and results.
      accessed: Bytes read and written, without the head's kernels; 0 for GPUs.
      operations: What makes up `cycles`.
    """

    cycles: int
    kernels: int
    temporaries: int
    accessed: int
    operations: tuple[Operation, ...] = ()


def print_table(
    mesh: Mesh,
    topology: str,
    shapes: Mapping[str, HeadShape],
    heads: Sequence[str] | None,
    batch: int,
    depth: int | None = None,
    explain: bool = False,
) -> None:
    """Compiles the steps of some models and prints a line for each head.

    Args:
      mesh: Devices of the machine.
      topology: Name of the machine, such as "v5e:1x1".
      shapes: Shapes of the heads, by the names of their models.
      heads: Kinds of heads, and implementations of the NOAH head, to compile beside a linear head;
        by default all implementations that differ.
      batch: Images on each device.
      depth: Number of blocks of the backbones, to compile faster; by default the published number.
      explain: Whether to print where the cycles of each head differ from the linear one's.

    Raises:
      InputError: If a backbone's depth cannot be set, or a kernel does not compile.
    """
    print(f"train steps for {topology}, {batch} images a chip, bfloat16, SGD; over linear")
    print(f"{'':20}{'Mcycles':>10}{'':>9}{'temporary GB':>14}{'':>9}{'accessed GB':>13}")
    heads = [head for head in heads or _HEADS if head != "linear"]
    for name, shape in shapes.items():
        print(name, flush=True)
        linear, of_linear = None, None
        for kind in ("linear", *heads):
            with working(f"compiling {name} with the head {kind}"):
                cost = compile_step(mesh, name, shape, kind, batch, depth)
                of_kernels = 0
                if cost.kernels and cost.cycles:
                    of_kernels = kernel_cycles(topology, shape, batch)
                cycles = cost.cycles + of_kernels
            row = cycles, cost.temporaries
            linear = linear or row
            # XLA tells only the memory for GPUs.
            over = [
                f"{100 * (x / y - 1):+.1f} %" if y else "" for x, y in zip(row, linear, strict=True)
            ]
            label = f"{kind} (kernel)" if cost.kernels else kind
            shown = f"{cycles / 1e6:.2f}" if cycles else ""
            accessed = f"{cost.accessed / 1e9:.1f}" if cost.accessed else ""
            line = f"  {label:18}{shown:>10}{over[0]:>9}{row[1] / 1e9:14.3f}{over[1]:>9}"
            print(f"{line}{accessed:>13}".rstrip(), flush=True)
            if kind == "linear":
                of_linear = cost.operations
            elif explain and cycles and of_linear:
                print_difference(of_linear, cost.operations, of_kernels)


def compile_step(
    mesh: Mesh, name: str, shape: HeadShape, kind: str, batch: int, depth: int | None = None
) -> StepCost:
    """Compiles the train step of a model and returns its cost.

    Args:
      mesh: Devices of the machine.
      name: Name of the model with the NOAH head.
      shape: Shape of its head.
      kind: A kind of head, or an implementation of the NOAH head.
      batch: Images on each device.
      depth: Number of blocks of the backbone; `None` is the published number.
    """
    head = kind if kind in HEADS else noah_head(shape, kind, jnp.bfloat16)
    dimensions = {} if depth is None else {"depth": depth}
    model = create_model(name.removeprefix("noah_"), head=head, dtype="bfloat16", **dimensions)
    compiled = PlainStep(model, mesh, batch).compile()
    text = hlo.program_text(compiled)
    return StepCost(
        hlo.estimated_cycles(text) or 0,
        kernel_calls(text),
        hlo.memory_stats(compiled).temp_size_in_bytes,
        int((compiled.cost_analysis() or {}).get("bytes accessed", 0)),
        tuple(operations(text)),
    )
