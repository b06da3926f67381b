"""Trains several heads on the same data and compares them with paired intervals."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from noah_jax.config import parse_command_line
from noah_jax.errors import UsageError

HEADS = ("linear", "noah")
DEFAULT_CONFIGS = ("configs/quickstart.py", "configs/sample.py:deit", "configs/sample.py:mixer")
_MEASURES = {"top1": "top-1", "map": "mAP"}
# What a head may change besides the model's name; all else must be alike.
_OF_THE_HEAD = ("model.name", "model.head_drop_rate", "model.head_num", "model.key_ratio")


def variant_for(config: str, head: str) -> str:
    """`FILE:VARIANT` of a configuration with a head."""
    file, _, variant = config.partition(":")
    backbone = variant.removeprefix("noah_")
    if backbone in ("", *HEADS):
        return f"{file}:{head}"
    return f"{file}:{backbone if head == 'linear' else 'noah_' + backbone}"


def resolve(config: str, heads: list[str], overrides: list[str]) -> list[dict[str, Any]]:
    """The configuration with each head, flat, in the order of `heads`.

    Raises:
      UsageError: if there is no such configuration, it has no such head, or the heads differ
        in more than the head.
    """
    from flax.traverse_util import flatten_dict

    found = []
    for head in heads:
        variant = variant_for(config, head)
        parsed, _ = parse_command_line(["compare", f"--config={variant}", *overrides])
        flat = flatten_dict(json.loads(parsed.to_json_best_effort()), sep=".")
        name = flat["model.name"]
        if name.startswith("noah_") != (head == "noah"):
            raise UsageError(f"--config {variant} should have the {head} head, but is of {name}")
        found.append(flat)
    for other in found[1:]:
        differing = [
            key
            for key in sorted(found[0].keys() | other.keys())
            if found[0].get(key) != other.get(key) and key not in (*_OF_THE_HEAD, "try_next")
        ]
        if differing:
            raise UsageError(
                f"the heads of {config} differ in more than the head: {', '.join(differing[:4])};"
                " set them alike with --config.KEY=VALUE"
            )
    return found


def train_command(config: str, head: str, seed: int, workdir: str, extra: list[str]) -> list[str]:
    """The training program's command line."""
    return [
        *(sys.executable, "-m", "noah_jax.train"),
        *("--config", variant_for(config, head), f"--workdir={workdir}", *extra),
        f"--config.seed={seed}",
    ]


def differences(reference: list[float], other: list[float]) -> dict[str, float]:
    """Mean of the paired differences, and half the width of its 95 % interval.

    The interval is Student's t's for n - 1 degrees of freedom; NaN for a single pair.
    """
    from scipy import stats

    paired = [b - a for a, b in zip(reference, other, strict=True)]
    n = len(paired)
    half = float("nan")
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(paired) / n**0.5
    return {"mean": statistics.fmean(paired), "half_width": half}


def summarise(runs: list[dict[str, Any]], heads: list[str]) -> list[dict[str, Any]]:
    """One row for every configuration and head, from the runs' results."""
    rows = []
    for config in dict.fromkeys(r["config"] for r in runs):
        reference: list[float] = []
        for head in heads:
            mine = [r for r in runs if r["config"] == config and r["head"] == head]
            values = [r["value"] for r in mine]
            row = {
                "config": config,
                "head": head,
                "model": mine[0]["model"],
                "num_params": mine[0]["num_params"],
                "seeds": [r["seed"] for r in mine],
                "measure": mine[0]["measure"],
                "values": values,
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(mine) > 1 else float("nan"),
            }
            if head == heads[0]:
                reference = values
            else:
                row["difference"] = differences(reference, values)
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], heads: list[str]) -> str:
    """The rows in Markdown."""
    measures = sorted({_MEASURES[row["measure"]] for row in rows}, reverse=True)
    lines = [
        f"| model | parameters | seeds | {' or '.join(measures)} | difference from {heads[0]},"
        " 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        difference = ""
        if "difference" in row:
            mean, half = row["difference"]["mean"], row["difference"]["half_width"]
            difference = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
        lines.append(
            f"| {row['model']} | {row['num_params']:,} | {len(row['seeds'])}"
            f" | {row['mean']:.2f} ± {row['std']:.2f} % | {difference} |"
        )
    return "\n".join(lines).replace("± nan ", "").replace(" (+nan to +nan)", "")


def draw_curves(runs: list[dict[str, Any]], path: pathlib.Path) -> None:
    """What is measured over the epochs: a panel for each configuration, a colour for each head."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    configs = list(dict.fromkeys(r["config"] for r in runs))
    figure, axes = pyplot.subplots(
        1, len(configs), figsize=(4.5 * len(configs), 3.5), squeeze=False, layout="constrained"
    )
    for axis, config in zip(axes[0], configs, strict=True):
        labelled = set()
        mine = [r for r in runs if r["config"] == config]
        for one in mine:
            head = one["head"]
            epochs, values = zip(*one["curve"], strict=True)
            label = None if head in labelled else one["model"]
            labelled.add(head)
            color = f"C{HEADS.index(head)}"
            axis.plot(epochs, values, color=color, alpha=0.8, label=label, marker=".")
        axis.set(title=config, xlabel="epoch", ylabel=f"{_MEASURES[mine[0]['measure']]} (%)")
        axis.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _folder(config: str, head: str, seed: int) -> str:
    name = config.replace(".py", "").removeprefix("configs/")
    for mark in ":/\\.":
        name = name.replace(mark, "-")
    return f"{name.strip('-')}-{head}-seed{seed}"


def _results(directory: Any, expected: dict[str, Any]) -> dict[str, Any] | None:
    """Results and curve of a finished run of the expected configuration; None: to be trained."""
    from noah_jax.runs.run_dir import check_config, read_results

    # Raises a ValueError if it is a run of something else.
    check_config(directory, expected)
    results = read_results(directory)
    if results is None:
        return None
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in lines if line["split"] in ("train", "eval")]
    epochs = {line["step"]: line["epoch"] for line in lines if line["split"] == "train"}
    last_step, last_epoch = max(epochs.items(), default=(results["step"], expected["epochs"]))
    per_step = last_epoch / last_step
    measure = "map" if "map" in results else "top1"
    curve = [(line["step"] * per_step, line[measure]) for line in lines if line["split"] == "eval"]
    return {**results, "measure": measure, "value": results[measure], "curve": curve}


def compare(
    configs: list[str], heads: list[str], seeds: list[int], workdir: str, overrides: list[str]
) -> list[dict[str, Any]]:
    """Trains what is not trained yet; returns the rows of the table.

    Raises:
      UsageError: if the configurations do not fit, before anything is trained.
      ValueError: if a folder holds another run.
      subprocess.CalledProcessError: if a training fails; it has said why.
    """
    from etils import epath
    from flax.traverse_util import unflatten_dict

    resolved = {config: resolve(config, heads, overrides) for config in configs}
    root = epath.Path(workdir)
    planned = [
        (config, head, seed, unflatten_dict({**flat, "seed": seed}, sep="."))
        for config in configs
        for seed in seeds
        for head, flat in zip(heads, resolved[config], strict=True)
    ]
    runs = []
    for number, (config, head, seed, expected) in enumerate(planned, 1):
        directory = root / _folder(config, head, seed)
        found = _results(directory, expected)
        if found is None:
            print(f"[{number}/{len(planned)}] {directory}", file=sys.stderr, flush=True)
            command = train_command(config, head, seed, os.fspath(directory), overrides)
            subprocess.run(command, check=True, stdout=sys.stderr)
            found = _results(directory, expected)
        print(
            f"[{number}/{len(planned)}] {found['model']}, seed {seed}: {found['value']:.2f} %",
            file=sys.stderr,
            flush=True,
        )
        runs.append({"config": config, "head": head, "seed": seed, **found})
    rows = summarise(runs, heads)
    (root / "compare.json").write_text(json.dumps({"rows": rows, "runs": runs}, indent=2) + "\n")
    (root / "compare.md").write_text(table(rows, heads) + "\n")
    if "://" in workdir:
        print(f"{workdir} is no local folder: no curves are drawn", file=sys.stderr)
    else:
        draw_curves(runs, pathlib.Path(workdir) / "curves.png")
    return rows
