"""What heads cost on TPUs and H100s, by compiling for them ahead of time.

It needs what `noah_jax.compile` needs: `pip install libtpu`, or `pip install 'jax[cuda13]'`.

A whole train step of each backbone, in bfloat16 with SGD, is compiled with a linear head and
with the NOAH head in each implementation. The compiler writes its estimate of the cycles beside
every operation, but knows nothing of a kernel's: a kernel's cycles are its instruction bundles
times the trips of the loops round them, or 16 for every product of the busiest matrix unit
where that is more. They are read from what the compiler dumps of the head alone, in a process
of its own, because the option must be set before the compiler is loaded.
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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from noah_jax import NOAH
from noah_jax.compile.targets import open_targets
from noah_jax.errors import InputError
from noah_jax.heads.noah.chunked import Operands
from noah_jax.heads.noah.tpu import Plan, pallas_poca, tpu_plan
from noah_jax.heads.noah.tpu_map import map_plan, map_poca
from noah_jax.models import create_model

_MATMUL_CYCLES = 16  # for which a product occupies its matrix unit
_HEADS = ("auto", "xla", "reference")
_GPU_HEADS = ("pallas", "xla", "reference")  # where "auto" is "xla"


class Gauge(NamedTuple):
    """What the compiler says of a train step.

    Attributes:
      cycles: estimated, of one step, without kernels; 0 for GPUs.
      kernels: how often the step calls a kernel of the head.
      temporaries: bytes of memory besides arguments and results.
      accessed: bytes read and written, without kernels; 0 for GPUs.
    """

    cycles: int
    kernels: int
    temporaries: int
    accessed: int


def print_table(
    mesh: Mesh,
    topology: str,
    shapes: dict[str, Any],
    heads: Sequence[str] | None,
    batch: int,
    depth: int | None = None,
) -> None:
    """Compiles and prints a line for each head.

    Args:
      mesh: of the machine.
      topology: its name, such as "v5e:1x1".
      shapes: `head.Shape`s, by the names of the models.
      heads: implementations to compile beside a linear head; by default all that differ.
      batch: images a chip.
      depth: of the backbones, where their family has it, to compile faster; by default theirs.

    Raises:
      ValueError: if a backbone has no depth to set.
    """
    print(f"train steps for {topology}, {batch} images a chip, bfloat16, SGD; over linear")
    print(f"{'':20}{'Mcycles':>10}{'':>9}{'temporary GB':>14}{'':>9}{'accessed GB':>13}")
    heads = heads or (_GPU_HEADS if topology.startswith("h100") else _HEADS)
    for name, shape in shapes.items():
        print(name, flush=True)
        linear = None
        for kind in ("linear", *heads):
            gauge = gauge_step(mesh, name, shape, kind, batch, depth)
            cycles = gauge.cycles
            if gauge.kernels:
                cycles += kernel_cycles(topology, shape, batch)
            row = cycles, gauge.temporaries
            linear = linear or row
            # Of GPUs the compiler tells the memory alone.
            over = [
                f"{100 * (x / y - 1):+.1f} %" if y else "" for x, y in zip(row, linear, strict=True)
            ]
            label = f"{kind} (kernel)" if gauge.kernels else kind
            shown = f"{cycles / 1e6:.2f}" if cycles else ""
            accessed = f"{gauge.accessed / 1e9:.1f}" if gauge.accessed else ""
            line = f"  {label:18}{shown:>10}{over[0]:>9}{row[1] / 1e9:14.3f}{over[1]:>9}"
            print(f"{line}{accessed:>13}".rstrip(), flush=True)


def topology_mesh(topology: str) -> Mesh:
    """All chips of a machine, along one axis; before JAX has done anything else in this process.

    Raises:
      ValueError: if there is no compiler, or no such machine.
    """
    (target,) = open_targets([topology])
    return Mesh(np.array(target.devices).reshape(-1), ("data",))


def gauge_step(
    mesh: Mesh, name: str, shape: Any, kind: str, batch: int, depth: int | None = None
) -> Gauge:
    """Compiles a train step of the NOAH model `name` with a head of this kind."""
    head: str | nnx.Module = "linear"
    if kind != "linear":
        # As `create_model` makes it, but for the implementation.
        head = NOAH(
            shape.channels,
            shape.num_classes,
            shape.head_num,
            shape.key_ratio,
            dtype=jnp.bfloat16,
            implementation=kind,
            spatial_major=shape.spatial_major,
            rngs=nnx.Rngs(params=0),
        )
    dimensions = {} if depth is None else {"depth": depth}
    model = create_model(name.removeprefix("noah_"), head=head, dtype="bfloat16", **dimensions)

    def step(params, momenta, stats, images, labels):
        def loss(params):
            logits, new_stats = model.apply(
                params, stats, images, train=True, key=jax.random.key(0)
            )
            likelihoods = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return -likelihoods.mean(), new_stats

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            (value, new_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        momenta = jax.tree.map(lambda m, g: 0.9 * m + g, momenta, gradients)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, params, momenta)
        return params, momenta, new_stats, value

    def put(tree, *axes):
        sharding = NamedSharding(mesh, jax.P(*axes))
        place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
        return jax.tree.map(place, tree)

    params, stats = model.abstract()
    total = batch * mesh.size
    images = jax.ShapeDtypeStruct((total, *model.image_size, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((total,), jnp.int32)
    arguments = put((params, params, stats)) + put((images, labels), "data")
    compiled = jax.jit(step, donate_argnums=(0, 1, 2)).lower(*arguments).compile()
    text = compiled.as_text()
    return Gauge(
        entry_cycles(text),
        len(re.findall(r'custom_call_target="tpu_custom_call"[^\n]*noah_head', text)),
        compiled.memory_analysis().temp_size_in_bytes,
        int((compiled.cost_analysis() or {}).get("bytes accessed", 0)),
    )


def entry_cycles(text: str) -> int:
    """The estimated cycles of a compiled program, kernels left out."""
    entry = text[text.index("\nENTRY") :]
    entry = entry[: entry.index("\n}")]
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry)))


def kernel_cycles(topology: str, shape: Any, batch: int) -> int:
    """Cycles of both kernels of a head, a step."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        given = json.dumps([topology, shape, batch])
        command = "import sys; from noah_jax.benchmark.ahead import _dump; _dump(*sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", command, given],
            env=os.environ | {"LIBTPU_INIT_ARGS": options, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise InputError(f"the kernel did not compile: {done.stderr.splitlines()[-1]}")
        trips = json.loads(done.stdout.splitlines()[-1])
        cycles = 0
        for direction in ("forward", "backward"):
            (path,) = pathlib.Path(folder).glob(f"*noah_head_{direction}*[0-9]-final_bundles.txt")
            cycles += bundle_cycles(path.read_text(), trips)
        return cycles


def bundle_cycles(text: str, trips: list[int]) -> int:
    """Cycles of a kernel from its listing, whose loops make so many trips, outermost first."""
    bundles: collections.Counter[int] = collections.Counter()
    products: collections.Counter[tuple[int, str]] = collections.Counter()
    for line in text.splitlines():
        # Number, kind of the line, one `>` for every loop it lies in.
        if bundle := re.match(r"\s*(?:0x)?[0-9a-f]+\s+(?:[A-Z]{2}:?)?\s*:?\s*(>*)\s*\{", line):
            depth = len(bundle[1])
            bundles[depth] += 1
            for unit in re.findall(r"vmatmul\S*\.mxu(\d)", line):
                products[depth, unit] += 1
    cycles = 0
    for depth, count in bundles.items():
        busiest = max((n for (d, _), n in products.items() if d == depth), default=0)
        cycles += max(count, _MATMUL_CYCLES * busiest) * int(np.prod(trips[:depth]))
    return cycles


def _dump(given: str) -> None:
    """Compiles a head's kernels alone and prints the trips of their loops."""
    topology, shape, batch = json.loads(given)
    spatial, channels, head_num, key_ratio, classes, spatial_major = shape
    chips = topology_mesh(topology)
    mesh = Mesh(chips.devices[:1], chips.axis_names)  # each chip runs the same kernels
    sharding = NamedSharding(mesh, jax.P())

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    query = int(channels * key_ratio)
    widths = query // head_num, (channels - query) // head_num
    operands = Operands(
        *(array(head_num, batch, math.prod(spatial), w, dtype=jnp.bfloat16) for w in widths),
        *(array(head_num, width, classes) for width in widths),
        array(head_num, classes),
    )
    features = array(batch, *spatial, channels, dtype=jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        plan = map_plan(features, operands, devices=1) if spatial_major else None
        from_map = plan is not None
        plan = plan or tpu_plan(operands, devices=1)

    def head(features, operands):
        if from_map:
            return map_poca(plan, features, *operands[2:])
        return pallas_poca(plan, operands, None)

    def step(*arguments):
        logits, vjp = jax.vjp(head, *arguments)
        return vjp(jnp.sin(logits))

    jax.jit(step).lower(features, operands).compile()
    # The blocks of the head are steps of the grid, or written out one after another.
    print(json.dumps(loop_trips(plan, batch, 1 if from_map else head_num, classes)))


def loop_trips(plan: Plan, batch: int, blocks: int, classes: int) -> list[int]:
    """Trips of the kernels' loops: grid, chunks of classes, groups of images, positions.

    Of a single trip the compiler makes no loop.
    """
    trips = (
        batch // plan.images * blocks,
        -(-classes // plan.chunk),
        plan.groups_of_images,
        plan.positions // plan.unroll,
    )
    return [trip for trip in trips if trip > 1]
