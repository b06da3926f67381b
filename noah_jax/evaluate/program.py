"""What `python -m noah_jax.evaluate` does once its command line is parsed."""

import argparse
import json
import re
from typing import Any

from etils import epath

from noah_jax import console
from noah_jax.compilation import enable_compilation_cache
from noah_jax.config import default_config
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.source import Source
from noah_jax.data.sources import open_eval_source
from noah_jax.errors import InputError, UsageError
from noah_jax.evaluate.evaluation import evaluate, make_inference
from noah_jax.evaluate.labels import labelled_folder, real_labels, relabelled
from noah_jax.evaluate.report import write_report
from noah_jax.inference.runner import Inference
from noah_jax.inference.trained import TrainedModel, find_checkpoints, load_trained

_BATCH = 128
# The columns of the table: percentages of the facts.
_SINGLE_LABEL = {"top-1": "top1", "top-5": "top5"}
_MULTI_LABEL = {
    "mAP": "map",
    "mAP-VOC": "map_voc",
    "mAP-VOC07": "map_voc07",
    "CF1": "cf1",
    "OF1": "of1",
}


def evaluate_all(given: argparse.Namespace) -> None:
    """Evaluates every checkpoint and prints a row for each.

    Raises:
      UsageError, ValueError, OSError, CheckpointError: before anything is printed of the
        checkpoint that does not fit.
    """
    found = find_checkpoints(given.checkpoint)
    enable_compilation_cache(default_config().compilation_cache)
    programs: dict[str, Inference] = {}
    names = [path if step is None else f"{path}/checkpoints/{step}" for path, step in found]
    width = max(map(len, [*names, "checkpoint"]))
    header = ""
    for (path, step), name in zip(found, names, strict=True):
        trained = load_trained(path, step, ema=given.ema)
        source = _open(given, trained)
        if given.real_labels:
            sets = real_labels(source, given.real_labels, trained.model.num_classes)
        corrupt_images = CorruptImages("replace", tell=console.warn)
        batch_size = min(given.batch or _BATCH, max(1, len(source)))
        inference = _inference(programs, trained, batch_size)
        evaluation = evaluate(
            inference,
            trained,
            DecodedSource(source),
            corrupt_images=corrupt_images,
            num_threads=given.threads,
        )
        facts: dict[str, Any] = {
            "checkpoint": name,
            "step": trained.step,
            "ema": trained.ema,
            "model": trained.model.name,
            "dataset": source.name,
            **evaluation.summary(),
        }
        if given.real_labels:
            facts |= evaluation.real(sets)
        facts["damaged"] = len(corrupt_images)
        if given.json:
            print(json.dumps(facts), flush=True)
        else:
            columns = _MULTI_LABEL if trained.multi_label else _SINGLE_LABEL
            before, header = header, _header(columns, width, real=bool(given.real_labels))
            if header != before:
                print(header)
            print(_row(facts, columns, width), flush=True)
        if given.report:
            folder = epath.Path(given.report)
            if len(found) > 1:
                folder /= re.sub(r"[^\w.-]+", "_", name).strip("_")
            write_report(folder, facts, evaluation, trained.display_names())


def _inference(programs: dict[str, Inference], trained: TrainedModel, batch_size: int) -> Inference:
    """The compiled program of a model, which checkpoints of the same kind share."""
    model = trained.model
    loss = [trained.config.get(key) for key in ("loss", "asymmetric")]
    key = repr((model.name, model.arguments, trained.preprocessing, loss, batch_size))
    if key not in programs:
        programs[key] = make_inference(trained, batch_size)
    return programs[key]


def _open(given: argparse.Namespace, trained: TrainedModel) -> Source:
    """The images and labels that the command line and the checkpoint say."""
    data = trained.config.get("data", {})
    dataset, own = given.dataset, {"dir": given.data_dir, "split": given.split}
    if dataset is None:
        if "dataset" not in trained.config:
            raise UsageError(f"{trained.path} does not tell its dataset; --dataset is needed")
        dataset = trained.config["dataset"]
        own = {"dir": given.data_dir or data["dir"], "split": given.split or data["eval_split"]}
    if trained.multi_label and (given.labels or given.real_labels):
        raise UsageError(
            f"--labels and --real-labels give images one label, and {trained.path} was trained for"
            " several"
        )
    classes = trained.class_names or [str(i) for i in range(trained.model.num_classes)]
    if given.labels and (source := labelled_folder(dataset, given.labels, classes)) is not None:
        return source
    source = open_eval_source(
        dataset, data_dir=own["dir"], split=own["split"], class_names=trained.class_names
    )
    if source.multi_label != trained.multi_label:
        raise InputError(
            f"{source.name} has several labels an image, and {trained.path} was not trained for"
            " that, or does not tell; choose another --dataset"
            if source.multi_label
            else f"{source.name} has one label for each image, and {trained.path} was trained for"
            " several; choose another --dataset"
        )
    if given.labels:
        return relabelled(source, given.labels, classes)
    theirs = source.class_names
    if len(theirs) != len(classes) or (trained.class_names and list(classes) != list(theirs)):
        differing = [pair for pair in zip(classes, theirs, strict=False) if pair[0] != pair[1]]
        first = f", the first to differ are {' and '.join(differing[0])}" if differing else ""
        raise InputError(
            f"{source.name} has {len(theirs)} classes, {trained.path} {len(classes)}{first};"
            " choose another --dataset, or say its labels with --labels"
        )
    return source


def _header(columns: dict[str, str], width: int, *, real: bool) -> str:
    percentages = "".join(f" {title:>7}" for title in columns)
    head = f"{'checkpoint':{width}} {'step':>7}{percentages} {'loss':>8} {'images':>8}"
    return head + (f" {'ReaL top-1':>11} {'images':>8}" if real else "")


def _row(facts: dict[str, Any], columns: dict[str, str], width: int) -> str:
    percentages = "".join(
        f" {'none' if facts[key] is None else f'{facts[key]:.2f}%':>{max(7, len(title))}}"
        for title, key in columns.items()
    )
    loss = "none" if facts["loss"] is None else f"{facts['loss']:.4f}"
    row = (
        f"{facts['checkpoint']:{width}} {facts['step']:7}{percentages} {loss:>8}"
        f" {facts['examples']:8,}"
    )
    if "real_top1" in facts:
        row += f" {facts['real_top1']:10.2f}% {facts['real_examples']:8,}"
    return row
