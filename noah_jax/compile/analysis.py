"""Compiles the real train step for a machine and reads what XLA says of it."""

import copy
import dataclasses
import math
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from noah_jax import distributed
from noah_jax.compile import hlo
from noah_jax.compile.targets import Target
from noah_jax.data import imagenet
from noah_jax.train.param_groups import trainable
from noah_jax.train.setup import Experiment, build

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
      needed: all of it at once.
      limit: what a program may take.
      arguments: the state and the batch; None, as the others, where XLA gave up.
      temporaries: what lives within the step alone.
      output: results that do not lie in donated memory.
      code: the program.
    """

    needed: int
    limit: int
    arguments: int | None = None
    temporaries: int | None = None
    output: int | None = None
    code: int | None = None

    @property
    def fits(self) -> bool:
        return self.needed <= self.limit


@dataclasses.dataclass(frozen=True)
class Donation:
    """Whether the new state takes the old one's memory.

    Attributes:
      bytes: of results that do.
      arrays: of the state that the step reads.
      donated: how many of them give their memory.
    """

    bytes: int
    arrays: int
    donated: int

    @property
    def honoured(self) -> bool:
        return self.donated == self.arrays


@dataclasses.dataclass(frozen=True)
class Report:
    """A train step compiled for a machine; everything is of one device.

    Attributes:
      model: the model's name.
      dtype: compute dtype.
      topology: the target's name.
      device_kind: what a device is.
      num_devices: how many there are.
      batch_size: images per step over all devices.
      state_bytes: of the state.
      parameter_bytes: of the trainable parameters, and so of their gradients.
      statistics_bytes: of BatchNorm's running statistics.
      memory: what it takes.
      compile_seconds: XLA's, on this machine.
      notes: what to know of the figures.
      flops: floating point operations of a step; None, as all below, where XLA gave up.
      bytes_accessed: memory traffic of a step; None on GPUs too.
      estimated_cycles: of a step, on a TPU.
      collectives: exchanges between the devices.
      donation: whether the state's memory is used again.
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
    collectives: list[hlo.Collective] | None = None
    donation: Donation | None = None

    @property
    def fits(self) -> bool:
        return self.memory.fits

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {"fits": self.fits, **dataclasses.asdict(self)}
        if self.collectives is not None:
            values["collectives"] = [c._asdict() for c in self.collectives]
        if self.donation is not None:
            values["donation"]["honoured"] = self.donation.honoured
        return values


def compile_for(config: ConfigDict, target: Target) -> Report:
    """The configuration's train step for a machine.

    ImageNet need not be here; other data must be, since its classes and size are read.

    Raises:
      ValueError: if anything in the configuration does not fit; names the key.
    """
    experiment = _build(config, target.devices)
    traced = experiment.trace_train_step()
    start = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        compiled, memory = None, _exhausted(error)
    seconds = time.perf_counter() - start
    state = experiment.abstract_state()
    found: dict[str, Any] = {}
    if compiled is not None:
        text = compiled.as_text()
        memory = _memory(compiled, target)
        flops, accessed = _cost(compiled, config, target)
        batch_arrays = 2
        found = {
            "flops": flops,
            "bytes_accessed": accessed,
            "estimated_cycles": hlo.estimated_cycles(text),
            "collectives": hlo.collectives(text, len(target.devices)),
            "donation": Donation(
                bytes=compiled.memory_analysis().alias_size_in_bytes,
                arrays=hlo.num_parameters(text) - batch_arrays,
                donated=hlo.donated_parameters(text),
            ),
        }
    return Report(
        model=experiment.model.name,
        dtype=config.model.dtype,
        topology=target.name,
        device_kind=target.devices[0].device_kind,
        num_devices=len(target.devices),
        batch_size=experiment.config.batch_size,
        state_bytes=distributed.device_bytes(state),
        parameter_bytes=_num_bytes(trainable(state["params"], experiment.groups.frozen)),
        statistics_bytes=_num_bytes(state["stats"]),
        memory=memory,
        compile_seconds=seconds,
        notes=target.notes,
        **found,
    )


def smaller_batch(config: ConfigDict, target: Target, unfit: Report) -> Report | None:
    """A smaller batch that fits, compiled to be sure.

    What a step needs beyond the state grows linearly with the batch: that gives the first
    guess among the batch's halves, quarters and so on, the next ones come if it is wrong.

    Args:
      config: its batch does not fit.
      target: the machine.
      unfit: what compiling it said.

    Returns:
      `None` if no batch fits that divides into devices and groups.
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
        except ValueError:  # such as a group of images that is larger than the batch
            return None
        if report.fits:
            return report
        halvings += 1
    return None


def _build(config: ConfigDict, devices: list[jax.Device]) -> Experiment:
    absent = imagenet.absent_imagenet() if config.dataset == imagenet.NAME else None
    return build(config, mesh=distributed.make_mesh(devices), sources=absent)


def _memory(compiled: jax.stages.Compiled, target: Target) -> Memory:
    stats = compiled.memory_analysis()
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "output": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return Memory(needed=sum(parts.values()), limit=target.memory, **parts)


def _exhausted(error: Exception) -> Memory:
    """What XLA's TPU compiler says a program needs that it refuses."""
    size = r"([\d.]+)([KMGT]?)\b"
    found = re.search(rf"(?:\(|Used ){size}.*?(?:\(|of ){size}", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not found:
        raise error
    needed, needed_unit, limit, limit_unit = found.groups()
    return Memory(
        needed=int(float(needed) * _UNITS[needed_unit]),
        limit=int(float(limit) * _UNITS[limit_unit]),
    )


def _cost(
    compiled: jax.stages.Compiled, config: ConfigDict, target: Target
) -> tuple[float, float | None]:
    """FLOPs and bytes of a device's step."""
    if target.platform != "cuda":
        cost = compiled.cost_analysis()
        return cost["flops"], cost["bytes accessed"]
    # XLA's GPU compiler does not say: count what is handed to it, for all devices together.
    traced = _build(config, jax.devices("cpu")[:1]).trace_train_step()
    cost = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
    return cost["flops"] / len(target.devices), None


def _num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
