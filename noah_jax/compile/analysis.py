"""Compiles the real train step for a machine and reports what XLA says of it."""

import copy
import dataclasses
import math
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from noah_jax import distributed
from noah_jax.aot import hlo
from noah_jax.aot.head_shape import head_shape
from noah_jax.aot.kernel_cycles import kernel_calls, kernel_cycles
from noah_jax.aot.targets import Target
from noah_jax.console import working
from noah_jax.data import imagenet
from noah_jax.data.prepare_labelled import absent_labelled
from noah_jax.data.shrunk import original_name
from noah_jax.errors import CompileError, InputError
from noah_jax.train.param_groups import trainable
from noah_jax.train.setup import TrainSetup, build

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a step on each device, in bytes.

    Attributes:
      needed: Memory that the step needs at once.
      limit: Memory that a program may take.
      arguments: The state and the batch; `None`, like the parts below, where XLA gave up.
      temporaries: Arrays that live only within the step.
      output: Results that do not lie in donated memory.
      code: The program itself.
    """

    needed: int
    limit: int
    arguments: int | None = None
    temporaries: int | None = None
    output: int | None = None
    code: int | None = None

    @property
    def fits(self) -> bool:
        """Whether a device has this memory."""
        return self.needed <= self.limit


@dataclasses.dataclass(frozen=True)
class Donation:
    """How far the new state takes the old state's memory.

    Attributes:
      bytes: Bytes of results that lie in donated memory.
      arrays: Number of the state's arrays that the step reads.
      donated: Number of these arrays that give their memory.
    """

    bytes: int
    arrays: int
    donated: int

    @property
    def honoured(self) -> bool:
        """Whether every array of the state gives its memory."""
        return self.donated == self.arrays


@dataclasses.dataclass(frozen=True)
class Report:
    """A train step compiled for a machine; every figure is per device.

    Attributes:
      model: Name of the model.
      dtype: Compute dtype.
      topology: Name of the target.
      device_kind: Kind of the devices.
      num_devices: Number of devices.
      batch_size: Images per step over all devices.
      state_bytes: Bytes of the training state.
      parameter_bytes: Bytes of the trainable parameters, and so of their gradients.
      statistics_bytes: Bytes of BatchNorm's running statistics.
      memory: Memory that the step takes.
      compile_seconds: Seconds that XLA took on this machine.
      notes: Sentences on what the figures leave out.
      flops: Floating-point operations of a step; `None`, like all below, where XLA gave up.
      bytes_accessed: Memory traffic of a step; `None` on GPUs too.
      estimated_cycles: Cycles of a step on a TPU, the head's kernels included.
      kernel_cycles: Cycles of the head's kernels among them; 0 where the step calls none.
      collectives: Exchanges between the devices.
      donation: How far the state's memory is used again.
    """

    model: str
    dtype: str
    topology: str
    device_kind: str
    num_devices: int
    batch_size: int
    state_bytes: int
    parameter_bytes: int
    statistics_bytes: int
    memory: Memory
    compile_seconds: float
    notes: tuple[str, ...]
    flops: float | None = None
    bytes_accessed: float | None = None
    estimated_cycles: int | None = None
    kernel_cycles: int | None = None
    collectives: list[hlo.Collective] | None = None
    donation: Donation | None = None

    @property
    def fits(self) -> bool:
        """Whether the step fits into a device's memory."""
        return self.memory.fits

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as what JSON takes."""
        values = {"fits": self.fits, **dataclasses.asdict(self)}
        if self.collectives is not None:
            values["collectives"] = [c._asdict() for c in self.collectives]
        if self.donation is not None:
            values["donation"]["honoured"] = self.donation.honoured
        return values


def compile_for(config: ConfigDict, target: Target) -> Report:
    """Compiles a configuration's train step for a machine.

    ImageNet need not be here. Other data must be, since its classes and its size are read.

    Raises:
      InputError: If a key of the configuration does not fit; names the key.
      CompileError: If XLA refuses the step for another reason than its memory.
    """
    setup = _build(config, target.devices)
    name = f"{setup.model.name}, {setup.plan.batch_size} images a step, for {target.name}"
    with working(f"tracing {name}"):
        traced = setup.steps.trace_train_step()
    start = time.perf_counter()
    try:
        with working(f"compiling {name}"):
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        compiled, memory = None, needed_memory(error)
    seconds = time.perf_counter() - start
    state = setup.states.abstract()
    details: dict[str, Any] = {}
    if compiled is not None:
        text = hlo.program_text(compiled)
        memory = _memory(compiled, target)
        flops, accessed = _cost(compiled, config, target)
        batch_arrays = 2
        cycles, of_kernels = _cycles(text, setup, target)
        details = {
            "flops": flops,
            "bytes_accessed": accessed,
            "estimated_cycles": cycles,
            "kernel_cycles": of_kernels,
            "collectives": hlo.collectives(text, len(target.devices)),
            "donation": Donation(
                bytes=hlo.memory_stats(compiled).alias_size_in_bytes,
                arrays=hlo.num_parameters(text) - batch_arrays,
                donated=hlo.donated_parameters(text),
            ),
        }
    return Report(
        model=setup.model.name,
        dtype=config.model.dtype,
        topology=target.name,
        device_kind=target.devices[0].device_kind,
        num_devices=len(target.devices),
        batch_size=setup.plan.batch_size,
        state_bytes=distributed.device_bytes(state),
        parameter_bytes=_num_bytes(trainable(state["params"], setup.param_groups.frozen)),
        statistics_bytes=_num_bytes(state["stats"]),
        memory=memory,
        compile_seconds=seconds,
        notes=target.notes,
        **details,
    )


def smaller_batch(config: ConfigDict, target: Target, unfit: Report) -> Report | None:
    """Looks for a smaller batch that fits, and compiles it to be sure.

    The memory beyond the state grows linearly with the batch, which gives the first guess among
    the batch's halves, quarters and so on; smaller ones follow if the guess is wrong.

    Args:
      config: Configuration whose batch does not fit.
      target: Machine to compile for.
      unfit: Report of the batch that does not fit.

    Returns:
      The report of the batch that fits; `None` if none fits that divides into devices, BatchNorm
      groups and mixing groups.
    """
    need, room = (x - unfit.state_bytes for x in (unfit.memory.needed, unfit.memory.limit))
    if room <= 0:
        return None
    halvings = max(math.ceil(math.log2(need / room)), 1)
    while (batch_size := unfit.batch_size >> halvings) >= unfit.num_devices:
        smaller = copy.deepcopy(config)
        smaller.batch_size, smaller.scale_batch = batch_size, 1.0
        try:
            report = compile_for(smaller, target)
        except InputError:  # a BatchNorm or mixing group is larger than this batch, for example
            return None
        if report.fits:
            return report
        halvings += 1
    return None


def _build(config: ConfigDict, devices: list[jax.Device]) -> TrainSetup:
    dataset = original_name(config.dataset)
    known = dataset == imagenet.NAME
    absent = imagenet.absent_imagenet() if known else absent_labelled(dataset)
    # The evaluation is not compiled, so its batch need not fit the machine.
    config = copy.deepcopy(config)
    if config.eval_batch_size is not None:
        config.eval_batch_size = len(devices)
    return build(config, mesh=distributed.make_mesh(devices), sources=absent)


def _cycles(text: str, setup: TrainSetup, target: Target) -> tuple[int, int] | tuple[None, None]:
    """Returns the cycles of a step with the head's kernels, and of the kernels alone."""
    cycles = hlo.estimated_cycles(text)
    if cycles is None:
        return None, None
    of_kernels = 0
    if kernel_calls(text):
        # Each micro-batch calls the kernels once.
        micro_batches = setup.plan.accumulate
        images = setup.plan.batch_size // micro_batches // len(target.devices)
        shape = head_shape(setup.model)
        with working("compiling the head's kernels, to count their cycles"):
            of_kernels = micro_batches * kernel_cycles(
                target.name, shape, images, setup.model.arguments["dtype"]
            )
    return cycles + of_kernels, of_kernels


def _memory(compiled: jax.stages.Compiled, target: Target) -> Memory:
    stats = hlo.memory_stats(compiled)
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "output": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return Memory(needed=sum(parts.values()), limit=target.memory, **parts)


def needed_memory(error: Exception) -> Memory:
    """Returns the memory that a program needs which XLA's TPU compiler refused.

    Raises:
      CompileError: If the compiler refused it for another reason.
    """
    size = r"([\d.]+)([KMGT]?)\b"
    found = re.search(rf"(?:\(|Used ){size}.*?(?:\(|of ){size}", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not found:
        raise CompileError(f"XLA refuses the step: {error}") from error
    needed, needed_unit, limit, limit_unit = found.groups()
    return Memory(
        needed=int(float(needed) * _UNITS[needed_unit]),
        limit=int(float(limit) * _UNITS[limit_unit]),
    )


def _cost(
    compiled: jax.stages.Compiled, config: ConfigDict, target: Target
) -> tuple[float, float | None]:
    """Returns the FLOPs and the memory traffic of a step."""
    if target.platform != "cuda":
        cost = compiled.cost_analysis() or {}
        return cost["flops"], cost["bytes accessed"]
    # XLA's GPU compiler tells no FLOPs, so they are counted before it, for all devices together.
    with working("tracing the step once more, to count its FLOPs"):
        traced = _build(config, jax.devices("cpu")[:1]).steps.trace_train_step()
    cost = traced.lower(lowering_platforms=("cuda",)).cost_analysis() or {}
    return cost["flops"] / len(target.devices), None


def _num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
