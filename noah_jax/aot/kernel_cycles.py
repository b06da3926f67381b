"""Counts the cycles of the NOAH head's TPU kernels, of which XLA makes no estimate.

The TPU's compiler can write the instructions of a kernel to a file, as bundles that issue in one
cycle each. A kernel's cycles are its bundles times the trips of the loops round them. Where the
matrix units are the limit, each product counts for the cycles that it occupies its unit. What a
branch can skip is work of the first step, or starts a copy, and counts once. Stalls on memory, and
copies between HBM and VMEM that nothing covers, are not seen, so the count is a lower bound. Of
chips whose two cores share a kernel's grid it counts the core with more steps.

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
from noah_jax.errors import InputError, error_line
from noah_jax.heads.noah.operands import ChannelSplit, PocaInputs, PocaShape, Weights
from noah_jax.heads.noah.poca import ROWS, choose
from noah_jax.heads.noah.tpu_tiles import TpuPlan
from noah_jax.nn.dropout import seeds_of

# Rows that a matrix unit takes in a cycle, as XLA estimates large products: a v5e has four units of
# 128 x 128, a core of a v4 or v5p as well, and a v6e or a core of a v7x has two of 256 x 256.
_ROWS_A_CYCLE = {"v4": 1, "v5e": 1, "v5p": 1, "v6e": 2, "v7x": 2}
# A line of the listing: an address, a mark, one `>` for every loop round the bundle, the bundle.
_BUNDLE = re.compile(r"\s*(?:0x)?[0-9a-f]+\s+(?:[A-Z]{2}:?)?\s*:?\s*(>*)\s*\{")
_BRANCH = re.compile(r"sbr\.rel \(.*?\) target = \$region(\d+)")
_LABEL = re.compile(r"Start/End empty region (\d+)")
_PRODUCT = re.compile(r"vmatmul(\S*)\.mxu(\d)")


def kernel_calls(text: str) -> int:
    """Returns how often a compiled program, `Compiled.as_text()`, calls a kernel of the head."""
    targets = r'custom_call_target="(?:tpu_custom_call|__gpu\$xla\.gpu\.triton)"'
    return len(re.findall(targets + r"[^\n]*noah_head", text))


def kernel_cycles(topology: str, shape: HeadShape, batch: int, dtype: str = "bfloat16") -> int:
    """Returns the cycles of the forward and the backward kernel of a head on one chip.

    Args:
      topology: Name of the machine, such as "v5e:1x1"; see `targets.open_targets`.
      shape: Shape of the head.
      batch: Images on each chip.
      dtype: Dtype of the features.

    Raises:
      InputError: If the kernels do not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = f"from {__name__} import compile_kernels; compile_kernels()"
        ran = subprocess.run(
            [sys.executable, "-c", command],
            input=json.dumps([topology, shape, batch, dtype]),
            env=os.environ | {"LIBTPU_INIT_ARGS": options, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise InputError(f"the kernel did not compile: {error_line(ran.stderr)}")
        trips = json.loads(ran.stdout.splitlines()[-1])
        rows_a_cycle = _ROWS_A_CYCLE[topology.partition(":")[0]]
        cycles = 0
        for direction, of_loops in zip(("forward", "backward"), trips, strict=True):
            pattern = f"*noah_head_{direction}*[0-9]-final_bundles.txt"
            listing = next(pathlib.Path(folder).glob(pattern)).read_text()
            cycles += bundle_cycles(listing, of_loops, rows_a_cycle)
        return cycles


def bundle_cycles(listing: str, trips: Sequence[int], rows_a_cycle: int) -> int:
    """Returns the cycles of a kernel.

    One product takes 16 rows of bfloat16, or 8 of float32.

    Args:
      listing: The compiler's listing of the kernel's bundles.
      trips: How often each of the nested loops runs, outermost first.
      rows_a_cycle: Rows that a matrix unit takes in a cycle.
    """
    lines = listing.splitlines()
    skipped = _skipped(lines)
    once = 0
    bundles: collections.Counter[int] = collections.Counter()
    rows: collections.Counter[tuple[int, str]] = collections.Counter()
    for number, line in enumerate(lines):
        bundle = _BUNDLE.match(line)
        if bundle and number in skipped:
            once += 1
        elif bundle:
            depth = len(bundle[1])
            bundles[depth] += 1
            for kind, unit in _PRODUCT.findall(line):
                rows[depth, unit] += 16 if "bf16" in kind else 8
    cycles = once
    for depth, count in bundles.items():
        busiest = max((n for (d, _), n in rows.items() if d == depth), default=0)
        cycles += max(count, busiest // rows_a_cycle) * math.prod(trips[:depth])
    return cycles


def _skipped(lines: Sequence[str]) -> set[int]:
    """Finds the lines that a branch can skip and that hold no loop."""
    labels = {}
    for number, line in enumerate(lines):
        labels.update(dict.fromkeys(_LABEL.findall(line), number))
    loops = [number for number, line in enumerate(lines) if re.match(r"\s*\S+ LB:", line)]
    skipped: set[int] = set()
    for number, line in enumerate(lines):
        for region in _BRANCH.findall(line):
            inside = range(number + 1, labels.get(region, 0))
            if not any(loop in inside for loop in loops):
                skipped.update(inside)
    return skipped


def compile_kernels() -> None:
    """Compiles the kernels that stdin names and prints the trips of their loops.

    It is the child process of `kernel_cycles`.
    """
    topology, shape, batch, dtype = json.load(sys.stdin)
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
    features = array(batch, *shape.spatial, shape.channels, dtype=jnp.dtype(dtype))
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


def loop_trips(plan: TpuPlan, batch: int, blocks: int, classes: int) -> list[list[int]]:
    """Returns the trips of the loops of the forward and of the backward kernel.

    These are the grid, the chunks of classes, and the bodies of `tpu_block.py`. The compiler makes
    no loop of a single trip, so those are left out.

    Args:
      plan: Plan of the kernels.
      batch: Images on a device.
      blocks: Blocks of the head that are steps of the grid.
      classes: Number of classes.
    """
    tiles, chunks = batch // plan.images, -(-classes // plan.class_chunk)
    shared_blocks = -(-blocks // plan.cores) * tiles
    shared_tiles = blocks * -(-tiles // plan.cores)
    # See `tpu.py` and `tpu_map.py` for what the cores share.
    if blocks > 1:
        forward = shared_blocks
        backward = shared_blocks if plan.channel_groups > 1 else blocks * tiles
    else:
        forward = shared_tiles
        backward = shared_tiles if tiles % plan.cores == 0 else tiles
    return [
        [trip for trip in (grid, chunks, plan.bodies) if trip > 1] for grid in (forward, backward)
    ]
