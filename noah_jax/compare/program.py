"""Trains several heads or settings on the same data, each in its own process; compares them."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

from etils import epath
from flax.traverse_util import unflatten_dict

from noah_jax.compare.contenders import Contender, find_contenders, labels, tell_left_out
from noah_jax.compare.cost_plot import draw_costs
from noah_jax.compare.curves import draw_curves
from noah_jax.compare.places import find_places
from noah_jax.compare.records import Record, count_multiply_adds, read_run
from noah_jax.compare.running import Job, Runner
from noah_jax.compare.summary import summarise
from noah_jax.compare.sweep import Sweep
from noah_jax.compare.tables import format_csv, format_table
from noah_jax.console import fail, note, working
from noah_jax.errors import UsageError, did_you_mean
from noah_jax.files import write_bytes, write_text
from noah_jax.heads.registry import HEADS
from noah_jax.interrupts import INTERRUPTED, RESTARTABLE

_STOPPED = (RESTARTABLE, INTERRUPTED)


class Training(NamedTuple):
    """One training that is needed.

    Attributes:
      contender: What is trained.
      label: What the contender is called.
      seed: The seed.
      folder: The run's folder.
      progress: Which of all trainings it is, such as "[2/6]".
    """

    contender: Contender
    label: str
    seed: int
    folder: epath.Path
    progress: str

    @property
    def expected(self) -> dict[str, Any]:
        """The configuration that the run's folder must have, as nested dicts."""
        return unflatten_dict({**self.contender.flat, "seed": self.seed}, sep=".")

    def command(self, *words: str) -> list[str]:
        """Returns the command line that trains in the folder, with more words behind it."""
        return [
            *(sys.executable, "-m", "noah_jax.train", *self.contender.words),
            *(f"--config.seed={self.seed}", f"--workdir={os.fspath(self.folder)}", *words),
        ]


class Outcome(NamedTuple):
    """What a comparison came to.

    Attributes:
      rows: A row for each contender of which a training finished, see
        `noah_jax.compare.summary.summarise`; empty if the comparison was stopped.
      exit_code: 0 if all trainings finished; otherwise that of the program.
    """

    rows: list[Record]
    exit_code: int


def compare(
    configs: Sequence[str],
    heads: Sequence[str] | None,
    seeds: Sequence[int],
    workdir: str,
    overrides: Sequence[str] = (),
    *,
    sweep: Sweep | None = None,
    parallel: int = 1,
) -> Outcome:
    """Trains what is not trained yet, and writes the results.

    A training that fails is told in a line on standard error. The others go on, and the results
    are those of the trainings that finished.

    Args:
      configs: Configurations, `FILE` or `FILE:VARIANT`.
      heads: Names of heads, see `noah_jax.heads.registry.HEADS`; `None` takes the head that each
        configuration has. Differences are from the first head with the first setting.
      seeds: Seeds; each configuration is trained with every head, setting and seed.
      workdir: The folder for the runs' folders and the results, local or `gs://`.
      overrides: `--config.KEY=VALUE` arguments for every training.
      sweep: Keys that vary and their values, see `noah_jax.compare.sweep.parse_sweep`.
      parallel: How many trainings run at once, each on its share of the devices.

    Raises:
      UsageError: If a configuration, a head or a key does not fit, before anything is trained.
      InputError: If a value does not fit, or a folder holds another run.
      WriteError: If the results cannot be written.
    """
    _check_heads(heads or ())
    sweep = sweep or {}
    contenders = [c for config in configs for c in find_contenders(config, heads, sweep, overrides)]
    tell_left_out(heads, sweep)
    root = epath.Path(workdir)
    trainings = _trainings(contenders, seeds, root)
    records = [read_run(training.folder, training.expected) for training in trainings]
    exit_code = _train(trainings, records, parallel)
    if exit_code in _STOPPED and None in records:
        fail("a training was stopped; the same command goes on from there")
        return Outcome([], exit_code)
    finished = [(t, record) for t, record in zip(trainings, records, strict=True) if record]
    if not finished:
        return Outcome([], exit_code)
    runs = _describe(finished)
    rows = summarise(runs)
    write_text(root / "compare.json", json.dumps({"rows": rows, "runs": runs}, indent=2) + "\n")
    write_text(root / "compare.md", format_table(rows) + "\n")
    write_text(root / "compare.csv", format_csv(rows))
    write_bytes(root / "curves.png", draw_curves(runs))
    write_bytes(root / "cost.png", draw_costs(rows))
    return Outcome(rows, exit_code)


def _check_heads(heads: Sequence[str]) -> None:
    for head in heads:
        if head not in HEADS:
            raise UsageError(
                f"--heads takes {', '.join(HEADS)}; got {head!r}{did_you_mean(head, HEADS)}"
            )


def _trainings(
    contenders: Sequence[Contender], seeds: Sequence[int], root: epath.Path
) -> list[Training]:
    """Returns all trainings, those of a configuration and a seed behind one another."""
    named = list(zip(contenders, labels(contenders), strict=True))
    ordered = [
        (contender, label, seed)
        for config in dict.fromkeys(contender.config for contender in contenders)
        for seed in seeds
        for contender, label in named
        if contender.config == config
    ]
    return [
        Training(contender, label, seed, root / contender.folder(seed), f"[{n}/{len(ordered)}]")
        for n, (contender, label, seed) in enumerate(ordered, 1)
    ]


def _train(trainings: Sequence[Training], records: list[Record | None], parallel: int) -> int:
    """Runs the trainings without a record and fills in their records; returns the exit code."""
    for training, record in zip(trainings, records, strict=True):
        if record is not None:
            _tell(training, record)
    needed = [number for number, record in enumerate(records) if record is None]
    if not needed:
        return 0
    places = find_places(min(parallel, len(needed)))
    # Beside others a training must not look for the other processes of a run.
    alone = () if len(places) == 1 else ("--num_processes=1",)
    jobs = [
        Job(
            number,
            trainings[number].folder.name,
            trainings[number].command(*alone),
            f"{trainings[number].progress} {trainings[number].folder}",
        )
        for number in needed
    ]
    codes = set()
    with closing(Runner(places).run(jobs)) as ended:
        for number, code in ended:
            training = trainings[number]
            if not code:
                record = read_run(training.folder, training.expected)
                assert record is not None  # the training ended well
                records[number] = record
                _tell(training, record)
            elif code not in _STOPPED:
                _tell_failure(training, code)
            codes.add(code)
    stopped = codes & set(_STOPPED)
    return max(stopped) if stopped else int(bool(codes - {0}))


def _tell(training: Training, record: Record) -> None:
    note(
        f"{training.progress} {record['model']}, {training.label}, seed {training.seed}:"
        f" {record['value']:.2f} %"
    )


def _tell_failure(training: Training, code: int) -> None:
    killed = ", killed; the same command goes on from there" if code < 0 else ""
    fail(f"the training in {training.folder} failed, see above (exit code {code}{killed})")


def _describe(finished: Sequence[tuple[Training, Record]]) -> list[Record]:
    """Returns what compare.json has of each training that finished."""
    counts: dict[tuple[str, str], int | None] = {}
    runs = []
    with working("counting the FLOPs"):
        for training, record in finished:
            key = (training.contender.config, training.label)
            if key not in counts:
                counts[key] = count_multiply_adds(training.folder)
            runs.append(
                {
                    "config": training.contender.config,
                    "head": training.contender.head,
                    "setting": training.contender.setting,
                    "label": training.label,
                    "seed": training.seed,
                    **record,
                    "multiply_adds": counts[key],
                }
            )
    return runs
