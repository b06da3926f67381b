"""Trains several heads on the same data, each in a process of its own, and compares them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax.compare.curves import draw_curves
from noah_jax.compare.summary import Record, format_table, summarise
from noah_jax.compare.variants import folder_name, overrides_for, variant_for
from noah_jax.config_flags import parse_config
from noah_jax.errors import UsageError
from noah_jax.files import write_bytes, write_text
from noah_jax.interrupts import stopping_in_order, undoing
from noah_jax.runs.run_dir import check_config, read_results

# Keys that may differ between the heads; all others must be equal.
_KEYS_OF_THE_HEAD = frozenset(
    {
        *("model.name", "model.head", "model.head_drop_rate", "model.head_num"),
        *("model.key_ratio", "model.head_split", "model.kv_split"),
    }
)


class Training(NamedTuple):
    """One training that is needed.

    Attributes:
      config: The configuration, as the user named it.
      head: One of `noah_jax.compare.variants.HEADS`.
      seed: The seed.
      expected: The configuration that the run's folder must have, as nested dicts.
    """

    config: str
    head: str
    seed: int
    expected: dict[str, Any]


def compare(
    configs: Sequence[str],
    heads: Sequence[str],
    seeds: Sequence[int],
    workdir: str,
    overrides: Sequence[str] = (),
) -> list[Record]:
    """Trains what is not trained yet, writes the results and returns the rows of the table.

    Args:
      configs: Configurations, `FILE` or `FILE:VARIANT`.
      heads: Heads, see `noah_jax.compare.variants.HEADS`; differences are from the first.
      seeds: Seeds; each configuration is trained with every head and seed.
      workdir: The folder for the runs' folders and the results, local or `gs://`.
      overrides: `--config.KEY=VALUE` arguments for every training.

    Returns:
      A row for each configuration and head, see `noah_jax.compare.summary.summarise`.

    Raises:
      UsageError: If a configuration does not fit, before anything is trained.
      InputError: If a folder holds another run.
      WriteError: If the results cannot be written.
      subprocess.CalledProcessError: If a training fails; it has printed the reason.
    """
    resolved = {config: resolve(config, heads, overrides) for config in configs}
    trainings = [
        Training(config, head, seed, unflatten_dict({**flat, "seed": seed}, sep="."))
        for config in configs
        for seed in seeds
        for head, flat in zip(heads, resolved[config], strict=True)
    ]
    root = epath.Path(workdir)
    runs = [
        _run(training, root, overrides, f"[{number}/{len(trainings)}]")
        for number, training in enumerate(trainings, 1)
    ]
    rows = summarise(runs, heads)
    write_text(root / "compare.json", json.dumps({"rows": rows, "runs": runs}, indent=2) + "\n")
    write_text(root / "compare.md", format_table(rows, heads) + "\n")
    write_bytes(root / "curves.png", draw_curves(runs))
    return rows


def resolve(
    config: str, heads: Sequence[str], overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Loads a configuration with each head, as flat dicts in the order of `heads`.

    Raises:
      UsageError: If there is no such configuration, if it has no such head, or if the heads
        differ in more than the head.
    """
    resolved = []
    for head in heads:
        variant = variant_for(config, head)
        parsed = parse_config([f"--config={variant}", *overrides_for(head, overrides)])
        flat = flatten_dict(json.loads(parsed.to_json_best_effort()), sep=".")
        name = flat["model.name"] or ""  # Without a name it is the model of init_from.
        if (name.startswith("noah_") or flat.get("model.head") == "noah") != (head == "noah"):
            raise UsageError(
                f"--config {variant} should have the {head} head, but its model is {name}"
            )
        resolved.append(flat)
    for other in resolved[1:]:
        differing = [
            key
            for key in sorted(resolved[0].keys() | other.keys())
            if resolved[0].get(key) != other.get(key) and key not in _KEYS_OF_THE_HEAD
        ]
        if differing:
            raise UsageError(
                f"the heads of {config} differ in more than the head: {', '.join(differing[:4])};"
                " set these keys to the same values with --config.KEY=VALUE"
            )
    return resolved


def _run(training: Training, root: epath.Path, overrides: Sequence[str], progress: str) -> Record:
    """Trains if it is needed, and returns the results with the curve."""
    folder = root / folder_name(training.config, training.head, training.seed)
    results = _read_run(folder, training.expected)
    if results is None:
        print(f"{progress} {folder}", file=sys.stderr, flush=True)
        command = train_command(training, os.fspath(folder), overrides)
        _run_training(command)
        results = _read_run(folder, training.expected)
        assert results is not None  # the training ended well
    print(
        f"{progress} {results['model']}, seed {training.seed}: {results['value']:.2f} %",
        file=sys.stderr,
        flush=True,
    )
    return {
        "config": training.config,
        "head": training.head,
        "seed": training.seed,
        **results,
    }


def _run_training(command: list[str]) -> None:
    """Runs a training, which gets the first Ctrl-C or SIGTERM and so stops in order.

    Raises:
      subprocess.CalledProcessError: If it fails.
    """
    # In a process group of its own, or it would get Ctrl-C from the terminal and from here.
    process = subprocess.Popen(command, stdout=sys.stderr, process_group=0)
    with process, stopping_in_order(process.send_signal), undoing(process.kill):
        code = process.wait()
    if code:
        raise subprocess.CalledProcessError(code, command)


def train_command(training: Training, workdir: str, overrides: Sequence[str]) -> list[str]:
    """Returns the command line that trains in a folder."""
    return [
        *(sys.executable, "-m", "noah_jax.train"),
        *("--config", variant_for(training.config, training.head), f"--workdir={workdir}"),
        *overrides_for(training.head, overrides),
        f"--config.seed={training.seed}",
    ]


def _read_run(folder: epath.Path, expected: dict[str, Any]) -> Record | None:
    """Reads the results and the curve of a finished run; `None` if it is not finished.

    Raises:
      InputError: If the folder holds a run of another configuration.
    """
    check_config(folder, expected)
    results = read_results(folder)
    if results is None:
        return None
    metrics = (folder / "metrics.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, metrics) if line["split"] in ("train", "eval")]
    epochs = {line["step"]: line["epoch"] for line in lines if line["split"] == "train"}
    last_step, last_epoch = max(
        epochs.items(), default=(results["step"], expected["epochs"] or 1.0)
    )
    epochs_per_step = last_epoch / last_step
    measure = "map" if "map" in results else "top1"
    curve = [
        (line["step"] * epochs_per_step, line[measure]) for line in lines if line["split"] == "eval"
    ]
    return {**results, "measure": measure, "value": results[measure], "curve": curve}
