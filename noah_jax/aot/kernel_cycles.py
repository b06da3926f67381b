"""Counts the cycles of the NOAH head's TPU kernels, of which XLA makes no estimate.

The TPU's compiler can write the instructions of a kernel to a file, as bundles that issue in one
cycle each. A kernel's cycles are its bundles times the trips of the loops round them. Where the
matrix units are the limit, each product counts for the cycles that it occupies its unit. Stalls on
memory are not seen, so the count is a lower bound.

The option for that file must be set before the compiler is loaded, so the head alone is compiled
in a process of its own.
"""

import collections
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from noah_jax.aot.head_shape import HeadShape
from noah_jax.aot.targets import topology_mesh
from noah_jax.errors import InputError
from noah_jax.heads.noah.operands import ChannelSplit, PocaInputs, PocaShape, Weights
from noah_jax.heads.noah.poca import ROWS, choose
from noah_jax.heads.noah.tpu_block import TpuPlan
from noah_jax.nn.dropout import seeds_of

_MATMUL_CYCLES = 16  # cycles for which one product occupies its matrix unit
# A line of the listing: an address, a mark, one `>` for every loop round the bundle, the bundle.
_BUNDLE = re.compile(r"\s*(?:0x)?[0-9a-f]+\s+(?:[A-Z]{2}:?)?\s*:?\s*(>*)\s*\{")
_PRODUCT = re.compile(r"vmatmul\S*\.mxu(\d)")


def kernel_calls(text: str) -> int:
    """Returns how often a compiled program, `Compiled.as_text()`, calls a kernel of the head."""
    targets = r'custom_call_target="(?:tpu_custom_call|__gpu\$xla\.gpu\.triton)"'
    return len(re.findall(targets + r"[^\n]*noah_head", text))


def kernel_cycles(topology: str, shape: HeadShape, batch: int) -> int:
    """Returns the cycles of the forward and the backward kernel of a head on one chip.

    Args:
      topology: Name of the machine, such as "v5e:1x1"; see `targets.open_targets`.
      shape: Shape of the head, which is computed in bfloat16.
      batch: Images on each chip.

    Raises:
      InputError: If the kernels do not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = f"from {__name__} import compile_kernels; compile_kernels()"
        ran = subprocess.run(
            [sys.executable, "-c", command],
            input=json.dumps([topology, shape, batch]),
            env=os.environ | {"LIBTPU_INIT_ARGS": options, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise InputError(f"the kernel did not compile: {ran.stderr.splitlines()[-1]}")
        trips = json.loads(ran.stdout.splitlines()[-1])
        listings = (
            next(pathlib.Path(folder).glob(f"*noah_head_{direction}*[0-9]-final_bundles.txt"))
            for direction in ("forward", "backward")
        )
        return sum(bundle_cycles(listing.read_text(), trips) for listing in listings)


def bundle_cycles(listing: str, trips: Sequence[int]) -> int:
    """Returns the cycles of a kernel.

    Args:
      listing: The compiler's listing of the kernel's bundles.
      trips: How often each of the nested loops runs, outermost first.
    """
    bundles: collections.Counter[int] = collections.Counter()
    products: collections.Counter[tuple[int, str]] = collections.Counter()
    for line in listing.splitlines():
        if bundle := _BUNDLE.match(line):
            depth = len(bundle[1])
            bundles[depth] += 1
            for unit in _PRODUCT.findall(line):
                products[depth, unit] += 1
    cycles = 0
    for depth, count in bundles.items():
        busiest = max((n for (d, _), n in products.items() if d == depth), default=0)
        cycles += max(count, _MATMUL_CYCLES * busiest) * math.prod(trips[:depth])
    return cycles


def compile_kernels() -> None:
    """Compiles the kernels that stdin names and prints the trips of their loops.

    It is the child process of `kernel_cycles`.
    """
    topology, shape, batch = json.load(sys.stdin)
    shape = HeadShape(*shape)
    chips = topology_mesh(topology)
    mesh = Mesh(chips.devices[:1], chips.axis_names)  # every chip runs the same kernels
    sharding = NamedSharding(mesh, jax.P())

    def array(*sizes: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    query = int(shape.channels * shape.key_ratio)
    widths = query // shape.head_num, (shape.channels - query) // shape.head_num
    kernels = [array(shape.head_num, width, shape.num_classes) for width in widths]
    weights = Weights(kernels[0], kernels[1], array(shape.head_num, shape.num_classes))
    features = array(batch, *shape.spatial, shape.channels, dtype=jnp.bfloat16)
    split = ChannelSplit(shape.key_ratio)
    poca_shape = PocaShape(
        batch,
        tuple(shape.spatial),
        shape.channels,
        shape.head_num,
        shape.num_classes,
        features.dtype,
        split,
        dropout=shape.dropout,
        spatial_major=shape.spatial_major,
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        choices = choose("auto", poca_shape)
    if "tpu" not in choices:
        raise InputError(f"no kernel takes {shape} at {batch} images")
    name, plan = choices["tpu"]

    def step(*arguments: Any) -> Any:
        seeds = seeds_of(jax.random.key(0), batch) if shape.dropout else None

        def head(features: Any, weights: Weights) -> jax.Array:
            return ROWS[name].compute(plan, PocaInputs(split, features, weights, seeds))

        logits, vjp = jax.vjp(head, *arguments)
        return vjp(jnp.sin(logits))

    jax.jit(step).lower(features, weights).compile()
    # The blocks of the head are steps of the grid, or written out one after another.
    blocks = 1 if name == "tpu_map" else shape.head_num
    print(json.dumps(loop_trips(plan, batch, blocks, shape.num_classes)))


def loop_trips(plan: TpuPlan, batch: int, blocks: int, classes: int) -> list[int]:
    """Returns the trips of the kernels' loops: grid, chunks of classes, images, positions.

    The compiler makes no loop of a single trip, so those are left out.
    """
    trips = (
        batch // plan.images * blocks,
        -(-classes // plan.class_chunk),
        plan.image_chunks,
        plan.positions // plan.unroll,
    )
    return [trip for trip in trips if trip > 1]
