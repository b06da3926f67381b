"""Measures how fast images get ready for training, beside other loaders on the same files.

Two recipes are measured: the CNNs' (random crop, flip) beside torchvision's transforms, and DeiT's
(with RandAugment) beside timm's, as the original composes them, with as many workers as there are
cores. Below them stand the floors on the same threads: decoding alone, and all transforms without
batches round them. Everything takes turns in one process, so that the machine's noise meets all.
Loaders that are not installed are left out: `pip install torch torchvision timm`.

Images a second depend on what else the machine does; the processor time of an image hardly does.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import psutil

from noah_jax.benchmark.input_at_size import at_size_contenders
from noah_jax.benchmark.input_contenders import (
    CNN,
    RECIPES,
    Contenders,
    Setting,
    approximate,
    jax_batches,
    own_contenders,
    torch_contenders,
)
from noah_jax.benchmark.input_dali import dali_contenders
from noah_jax.benchmark.photographs import write_class_folder
from noah_jax.console import say, working
from noah_jax.data.batches import num_cores
from noah_jax.data.decoding import decode_and_transform
from noah_jax.data.sampler import image_random
from noah_jax.data.source import Source
from noah_jax.data.sources import open_sources
from noah_jax.data.transforms import TrainTransform
from noah_jax.files import write_text

# Whoever takes part. The names in the table must differ.
CONTENDERS: tuple[Callable[[Setting], Contenders], ...] = (
    torch_contenders,
    own_contenders,
    dali_contenders,
    at_size_contenders,
)
_REFERENCES = ("torchvision", "torchvision, uint8", "timm")  # those that others are compared with
_FILES = 1024  # files of the made set; few enough to stay in memory, so that no disk counts
_SECONDS = 1.0  # duration of a turn
_BUFFERED = 7  # batches that may lie ready when a turn begins; they do not count


class Turn(NamedTuple):
    """What a turn of a contender measured.

    Attributes:
      speed: Images a second.
      cpu_ms: Processor time of an image in milliseconds, with that of worker processes.
    """

    speed: float
    cpu_ms: float


def measure(
    contenders: Contenders, *, batch: int, rounds: int, seconds: float | None = None
) -> dict[str, list[Turn]]:
    """Returns what each contender took, in every round.

    Args:
      contenders: Endless iterators of batches, by name.
      batch: Images of each batch.
      rounds: Number of turns of each contender.
      seconds: Duration of one turn; by default 1 s.
    """
    seconds = seconds or _SECONDS
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    with working(
        "timing the loaders", total=(rounds + 1) * len(contenders), unit="turns"
    ) as progress:
        for turn in range(rounds + 1):
            for name, batches in contenders.items():
                for _ in range(_BUFFERED):
                    next(batches)
                start, start_cpu = time.perf_counter(), processor_time()
                elapsed, count = 0.0, 0
                while elapsed < seconds:
                    next(batches)
                    count += batch
                    elapsed = time.perf_counter() - start
                if turn:  # the first turn warms up
                    cpu = processor_time() - start_cpu
                    turns[name].append(Turn(count / elapsed, 1000 * cpu / count))
                time.sleep(_BUFFERED * elapsed / (count / batch))  # until the buffers are full
                progress.advance()
    return turns


def processor_time() -> float:
    """Returns the processor time of this process and all that it has started, in seconds."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:  # it has ended meanwhile
            continue
        total += times.user + times.system
    return total


def pixel_difference(source: Source, transform: TrainTransform, images: int = 64) -> np.ndarray:
    """Returns the absolute difference, in levels of 255, of approximate and exact pixels."""
    exact, faster = (dataclasses.replace(transform, approximate=f) for f in (False, True))
    differences = []
    for index in range(min(images, len(source))):
        data, _ = source[index]
        pixels = [
            decode_and_transform(data, how, image_random(0, 0, index)).astype(np.int16)
            for how in (exact, faster)
        ]
        differences.append(np.abs(pixels[0] - pixels[1]))
    return np.stack(differences)


def measure_and_print(args: argparse.Namespace) -> None:
    """Measures the recipes on the folder that the options name and prints their tables."""
    recipes = [RECIPES[args.recipe]] if args.recipe else list(RECIPES.values())
    record: dict[str, dict[str, list[Turn]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or pathlib.Path(made)
        width, height = args.photograph_size
        if args.folder is None:
            write_class_folder(folder, files=_FILES, size=(width, height))
        source, _ = open_sources(f"folder:{folder}")
        cores = num_cores()
        say(
            f"{cores} core(s), batch {args.batch}, medians of {args.rounds} turns;"
            f" {len(source):,} files of {args.folder or f'made photographs, {width} x {height}'}"
        )
        for recipe in recipes:
            setting = Setting(recipe, folder, source, args.batch, cores)
            record[recipe.name] = _measure_recipe(setting, args.rounds)
        if CNN in recipes:
            record["threads"] = _measure_threads(setting, args.rounds)
    if args.json:
        tables = {
            table: {name: [turn._asdict() for turn in turns] for name, turns in rows.items()}
            for table, rows in record.items()
        }
        write_text(args.json, json.dumps(tables, indent=1))


def _measure_recipe(setting: Setting, rounds: int) -> dict[str, list[Turn]]:
    """Measures a recipe and prints a line for each contender."""
    contenders: Contenders = {}
    for make in CONTENDERS:
        contenders |= make(setting)
    turns = measure(contenders, batch=setting.batch, rounds=rounds)
    others = [name for name in _REFERENCES if name in turns]
    say(
        f"\n{setting.recipe.title:44} images/s  ms of processor an image"
        + "".join(f"  over {name}" for name in others)
    )
    for name, values in turns.items():
        ratios = (f"  {_ratio(values, turns[other]):{5 + len(other)}.2f}" for other in others)
        say(f"{name:44} {_speed(values):8.0f} {_cpu_ms(values):25.2f}{''.join(ratios)}")
    if approximate(setting.recipe.transform):
        difference = pixel_difference(setting.source, setting.recipe.transform)
        say(
            f"approximate_decode differs from Pillow's pixels by {difference.mean():.2f} levels of"
            f" 255 in the mean, {np.percentile(difference, 99):.0f} at the 99th percentile"
        )
    return turns


def _measure_threads(setting: Setting, rounds: int) -> dict[str, list[Turn]]:
    cores = setting.cores
    counts = sorted({1, *(2**i for i in range(cores.bit_length())), cores})
    contenders = {
        str(n): jax_batches(setting, CNN.transform, threads=n) for n in counts if n <= cores
    }
    turns = measure(contenders, batch=setting.batch, rounds=rounds)
    say("\nthreads (CNNs' recipe)   images/s   over one   ms of processor an image")
    for name, values in turns.items():
        ratio = _speed(values) / _speed(turns["1"])
        say(f"{name:24} {_speed(values):8.0f}   {ratio:8.2f}   {_cpu_ms(values):24.2f}")
    return turns


def _speed(turns: list[Turn]) -> float:
    return statistics.median(turn.speed for turn in turns)


def _cpu_ms(turns: list[Turn]) -> float:
    return statistics.median(turn.cpu_ms for turn in turns)


def _ratio(turns: list[Turn], others: list[Turn]) -> float:
    """Returns how many times as fast, as the median over the rounds."""
    return statistics.median(a.speed / b.speed for a, b in zip(turns, others, strict=True))
