"""Holds what the cores get ready against what the train step takes.

The input is measured on this machine, as the configuration has it and with each setting that would
spare the cores work, all in turns: in processor time, so that other programs do not count. What all
cores give, here or on another machine, is in proportion to their number. The step is measured here
too, or taken for another machine from `noah_jax.benchmark.machines`.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Mapping
from importlib.util import find_spec

import jax
from ml_collections import ConfigDict

from noah_jax.benchmark.input import measure
from noah_jax.benchmark.machines import StepSpeed, parse_machine, step_speed
from noah_jax.benchmark.photographs import Photographs, ShrunkSource
from noah_jax.benchmark.tables import cpu_name, device_name, print_columns, print_row
from noah_jax.cli import load_config
from noah_jax.compilation import enable_compilation_cache
from noah_jax.console import working
from noah_jax.data import imagenet
from noah_jax.data.batches import num_cores, train_batches
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.lighter import SMALL_SIDE, Lighter, lighter_settings
from noah_jax.data.prepare_labelled import absent_labelled
from noah_jax.data.sampler import Sampler
from noah_jax.data.setup import open_data
from noah_jax.data.source import Source
from noah_jax.errors import InputError
from noah_jax.files import write_text
from noah_jax.train.setup import TrainSetup, build

_AS_CONFIGURED = "as configured"
_SMALL = f"prepare --max-side {SMALL_SIDE}"
# The fields of a transform by their keys in the section `data`.
_FIELDS = {"augment_on_device": "on_device", "approximate_decode": "approximate"}
_STEP_SECONDS = 3.0  # duration of the step's measurement
_ENDLESS = 10**9


@dataclasses.dataclass(frozen=True)
class Gap:
    """What the step takes, and what the cores give with each setting.

    Attributes:
      needed: Images a second that the step takes.
      of_a_core: Images a second of one core, by the name of a setting; in the order in which to
        try them.
      cores: Number of cores.
    """

    needed: float
    of_a_core: Mapping[str, float]
    cores: int

    def given(self, name: str) -> float:
        """Returns the images a second of all cores."""
        return self.cores * self.of_a_core[name]

    def percent(self, name: str) -> str:
        """Returns what the cores give as a fraction of what the step takes."""
        return f"{100 * self.given(name) / self.needed:,.0f} %"

    def cores_needed(self, name: str) -> int:
        """Returns how many cores are enough for the step."""
        return math.ceil(self.needed / self.of_a_core[name])

    def advice(self) -> str:
        """Returns what to do, in one line."""
        enough = [name for name in self.of_a_core if self.given(name) >= self.needed]
        now = f"the cores give {self.percent(_AS_CONFIGURED)} of what the step takes"
        if _AS_CONFIGURED in enough:
            return f"{now}: the step is the limit"
        if enough:
            return f"{now}; {enough[0]} closes the gap ({self.percent(enough[0])})"
        best = max(self.of_a_core, key=lambda name: self.of_a_core[name])
        return (
            f"{now}; no setting closes the gap. {best} comes nearest ({self.percent(best)}) and"
            f" needs {self.cores_needed(best):,} cores, not {self.cores:,}"
        )


def open_or_make(config: ConfigDict) -> tuple[tuple[Source, Source], str]:
    """Opens the configuration's dataset, or makes photographs where it is not here.

    Returns:
      The training and the evaluation images, and what they are, in words.

    Raises:
      InputError: If the dataset is not here and its classes are not known.
    """
    try:
        sources = open_data(config.dataset, config.data)
    except InputError:
        known = config.dataset == imagenet.NAME
        absent = imagenet.absent_imagenet() if known else absent_labelled(config.dataset)
        if absent is None:
            raise
        train, evaluation = map(Photographs, absent)
        return (train, evaluation), f"made photographs ({config.dataset} is not here)"
    return sources, sources[0].name


def measure_step(setup: TrainSetup) -> StepSpeed:
    """Measures the train step on this machine's devices, on one batch."""
    with working(f"compiling the step of {setup.model.name}"):
        step = setup.steps.trace_train_step().lower().compile()
    state = setup.states.create()
    batch = next(setup.inputs.train_batches(0))
    with working(f"timing the step of {setup.model.name}"):
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        count, elapsed, begin = 0, 0.0, time.perf_counter()
        while elapsed < _STEP_SECONDS:
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            count += 1
            elapsed = time.perf_counter() - begin
    speed = count * setup.plan.batch_size / elapsed
    return StepSpeed(speed, f"measured here, {count} steps on {setup.mesh.size} x {device_name()}")


def measure_input(
    setup: TrainSetup, *, batch: int, rounds: int, seconds: float | None = None
) -> dict[str, float]:
    """Measures what the cores of this machine give.

    Args:
      setup: The training run.
      batch: Images a batch.
      rounds: Number of turns.
      seconds: Duration of a turn; by default 1 s.

    Returns:
      Images that one core gets ready in a second, as configured and with each setting that would
      help, in the order in which to try them.
    """
    inputs, section = setup.inputs, setup.config.data
    whole, as_configured = inputs.train_source, inputs.train_transform
    for index in range(len(whole) if whole.cached else 0):
        whole[index]  # from the second epoch on every image is cached
    settings = [setting for setting in lighter_settings(section) if _is_possible(setting)]
    choices = {setting.name: setting.values for setting in settings}
    if len(settings) > 1:
        choices[" and ".join(choices)] = {k: v for s in settings for k, v in s.values.items()}
    variants = {_AS_CONFIGURED: (whole, as_configured)}
    for name, values in choices.items():
        fields = {_FIELDS[key]: value for key, value in values.items()}
        variants[name] = whole, dataclasses.replace(as_configured, **fields)
    if not whole.cached:
        with working("shrinking images"):
            shrunk = ShrunkSource(whole.encoded, SMALL_SIDE)
        if shrunk.shrunk:
            small = DecodedSource(shrunk)
            *_, (most, (_, transform)) = variants.items()
            variants[_SMALL] = small, as_configured
            if settings:
                variants[f"{_SMALL} and {most}"] = small, transform
    contenders = {
        name: train_batches(
            source,
            transform,
            Sampler(0, len(source), batch),
            start_step=0,
            total_steps=_ENDLESS,
            num_threads=section.num_threads,
            num_workers=section.num_workers,
            put=lambda arrays: arrays,  # they stay on the host
            corrupt_images=inputs.corrupt_images,
        )
        for name, (source, transform) in variants.items()
    }
    turns = measure(contenders, batch=batch, rounds=rounds, seconds=seconds)
    return {name: 1000 / statistics.median(x.cpu_ms for x in turns[name]) for name in contenders}


def _is_possible(setting: Lighter) -> bool:
    """Returns whether the packages that a setting needs are installed."""
    return "approximate_decode" not in setting.values or find_spec("cv2") is not None


def measure_and_print(args: argparse.Namespace) -> None:
    """Measures what the options name, and prints a table and what to do."""
    config = load_config(args)
    if config.data.loader != "host":
        raise InputError(
            "--against-step measures what the host's loader gives: add --config.data.loader=host"
        )
    machine = None if args.machine is None else parse_machine(args.machine)
    with working("opening the data"):
        sources, images = open_or_make(config)
        setup = build(config, sources=sources)
    enable_compilation_cache(config.compilation_cache)
    if args.step_images_per_second is not None:
        step = StepSpeed(args.step_images_per_second, "as you say")
    else:
        step = measure_step(setup) if machine is None else step_speed(machine, setup.model)
    speeds = measure_input(setup, batch=args.batch, rounds=args.rounds)
    cores = args.cores or (num_cores() if machine is None else machine.vcpus)
    gap = Gap(step.images_per_second, speeds, cores)

    print(f"{setup.model.name} {f'on {machine.name}' if machine else 'here'}")
    print(f"the step takes {gap.needed:,.0f} images/s: {step.source}")
    print(f"the input was measured here, on {cpu_name()}, with {images}")
    if machine is not None and args.cores is None:
        print(
            f"{cores:,} vCPUs of {machine.host} count as cores here; they are hyper-threads, two of"
            " a core, so they give less if this machine's are whole cores"
        )
    print()
    columns = ("images/s a core", f"{cores:,} cores", "of the step", "cores that are enough")
    print_columns(("input", *columns))
    for name, speed in speeds.items():
        row = (f"{speed:,.0f}", f"{gap.given(name):,.0f}", gap.percent(name))
        print_row([name, *row, f"{gap.cores_needed(name):,}"])
    print(f"\n{gap.advice()}")
    if machine is not None and machine.kind == "h100" and gap.given(_AS_CONFIGURED) < gap.needed:
        print("data.loader=dali decodes on the GPUs instead, which is not measured here")
    if args.json:
        record = {"machine": args.machine, "step": step._asdict(), **dataclasses.asdict(gap)}
        write_text(args.json, json.dumps(record, indent=1))
