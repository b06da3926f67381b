"""Probes a backbone: features, trained heads, nearest neighbours, and the table of results."""

import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from noah_jax import console
from noah_jax.compilation import DEFAULT_CACHE, enable_compilation_cache
from noah_jax.config import default_config
from noah_jax.console import note, say, working
from noah_jax.data.record import record_data
from noah_jax.data.setup import open_data
from noah_jax.data.source import SAMPLE, Source
from noah_jax.errors import InputError, NonFiniteError
from noah_jax.files import make_folder
from noah_jax.heads.registry import check_head
from noah_jax.interrupts import advising
from noah_jax.models.base import Model
from noah_jax.probe.choices import Choices
from noah_jax.probe.encoder import Encoder, load_encoder
from noah_jax.probe.features import MAP, POOLED, FeatureCache, Features
from noah_jax.probe.knn import classify
from noah_jax.probe.recipe import Recipe, at_the_edge, describe, make_recipe
from noah_jax.probe.results import Row, format_table, head_row, neighbour_row, write_results
from noah_jax.probe.training import (
    Data,
    HeadTrainer,
    Standard,
    split_off,
    standardise,
    train_and_score,
)
from noah_jax.runs.destination import free_destination
from noah_jax.runs.model_folder import write_model_folder


def probe(choices: Choices) -> list[Row]:
    """Probes a backbone, prints the table and writes the results.

    Args:
      choices: What the user chose.

    Returns:
      The rows of the table; none in a dry run.

    Raises:
      NoahError: If the backbone, the data, a head or a folder does not fit.
    """
    for head in choices.heads:
        check_head(head)
    enable_compilation_cache(DEFAULT_CACHE)
    encoder = load_encoder(
        choices.backbone, ema=choices.ema, settings=choices.settings, dtype=choices.dtype
    )
    with working("opening the data"):
        dataset, sources = _open_sources(choices, encoder)
    num_classes = len(sources[0].class_names)
    models = {head: encoder.with_head(head, num_classes) for head in choices.heads}
    workdir = epath.Path(choices.workdir)
    if not choices.dry_run:
        make_folder(workdir)
        for folder in _folders(choices, workdir).values():
            free_destination(folder, folder=True, overwrite=True)
    with advising("the same command goes on with the features that are in the cache"):
        parts = _load_features(choices, encoder, sources)
        images = len(sources[0]) if parts is None else len(parts[0].rows)
        recipes = {head: _recipe(choices, head, images) for head in choices.heads}
        for head, model in models.items():
            say(describe(recipes[head], head, _num_parameters(model)))
        if parts is None:
            say("dry run: nothing was written")
            return []
        rows = [
            _probe_head(choices, encoder, models[head], recipes[head], *parts, workdir)
            for head in choices.heads
        ]
        if choices.knn:
            rows += _probe_neighbours(choices, *parts, num_classes)
    training, evaluation = parts
    about = {
        "backbone": encoder.trained.path,
        "fresh": encoder.fresh,
        "model": encoder.trained.model.name,
        "step": encoder.trained.step,
        "encoder": encoder.record,
        "dataset": dataset,
        "train": {"name": training.name, "images": len(training.rows)},
        "eval": {"name": evaluation.name, "images": len(evaluation.rows)},
        "cache_dtype": choices.cache_dtype,
    }
    write_results(workdir, rows, about)
    say(format_table(rows))
    note(
        f"measured once on the {len(evaluation.rows):,} images of {evaluation.name}; learning rates"
        f" were chosen on training images. Written to {workdir}: probe.md, probe.csv, probe.json"
    )
    return rows


def _open_sources(choices: Choices, encoder: Encoder) -> tuple[str, tuple[Source, Source]]:
    """Opens the images to train on and to measure on; returns the dataset's name too."""
    config = encoder.trained.config
    section = default_config().data
    dataset = choices.dataset
    if dataset is None and "dataset" in config:
        dataset = config["dataset"]
        for key in ("dir", "train_split", "eval_split", "eval_fraction", "cache_dir", "cache_gb"):
            section[key] = config["data"].get(key, section[key])
    section.dir = choices.data_dir or section.dir
    section.train_split = choices.train_split or section.train_split
    section.eval_split = choices.eval_split or section.eval_split
    dataset = dataset or SAMPLE
    training, evaluation = open_data(dataset, section, encoder.trained.split)
    if training.multi_label:
        raise InputError(
            f"{training.name} has several labels an image, and probes take one; choose another"
            " --dataset"
        )
    return dataset, (training, evaluation)


def _load_features(
    choices: Choices, encoder: Encoder, sources: tuple[Source, Source]
) -> tuple[Features, Features] | None:
    """Returns the features of both splits; `None` in a dry run."""
    kinds = [POOLED] if choices.knn or "linear" in choices.heads else []
    kinds += [MAP] if set(choices.heads) - {"linear"} else []
    cache = FeatureCache(
        choices.cache, choices.cache_dtype, choices.encoder_batch, choices.num_threads
    )
    record = record_data(*sources)
    parts = []
    for source, split in zip(sources, ("train", "eval"), strict=True):
        data = {"class_names": record["class_names"], **record[split]}
        parts.append(cache.load(encoder, source, data, kinds, dry_run=choices.dry_run))
    training, evaluation = parts
    return None if training is None or evaluation is None else (training, evaluation)


def _recipe(choices: Choices, head: str, images: int) -> Recipe:
    return make_recipe(
        head,
        images=images,
        epochs=choices.epochs,
        batch_size=choices.batch_size,
        optimizer=choices.optimizer,
        learning_rates=choices.learning_rates,
        weight_decay=choices.weight_decay,
    )


def _probe_head(
    choices: Choices,
    encoder: Encoder,
    model: Model,
    recipe: Recipe,
    training: Features,
    evaluation: Features,
    workdir: epath.Path,
) -> Row:
    """Chooses a head's learning rate, trains it with each seed, measures and writes it."""
    head = model.arguments["head"]
    kind = POOLED if head == "linear" else MAP
    data, test = _data(training, kind), _data(evaluation, kind)
    started = time.monotonic()
    standard: Standard | None = standardise(data) if recipe.standardise else None
    trainer = HeadTrainer(model, recipe, standard)
    best, held_out = _choose_rate(trainer, recipe, data, choices, head)
    if edge := at_the_edge(recipe, best):
        console.warn(f"{head}: {edge}; --learning-rates reaches further")
    values, folders = [], []
    for seed in choices.seeds:
        what = f"training {head}, seed {seed}"
        state, score = train_and_score(trainer, data, test, [best], seed=seed, what=what)
        values.append(float(score.top1[0]))
        folder = _folders(choices, workdir)[head, seed]
        origin = {"head": head, "seed": seed, "learning_rate": best, "trained_on": training.name}
        weights = trainer.weights(state, 0)
        _check_finite(weights, head, best)
        _write_model(folder, encoder, model, weights, origin, training.class_names)
        folders.append(folder)
    top1 = ", ".join(f"{value:.2f}" for value in values)
    note(f"{head}: learning rate {best:g}, top-1 {top1} %")
    return head_row(
        head,
        parameters=_num_parameters(model),
        recipe=recipe.to_json(),
        learning_rate=best,
        held_out=held_out,
        values=values,
        seeds=choices.seeds,
        seconds=time.monotonic() - started,
        folders=folders,
    )


def _choose_rate(
    trainer: HeadTrainer, recipe: Recipe, data: Data, choices: Choices, head: str
) -> tuple[float, dict[str, float]]:
    """Chooses the learning rate with the best mean top-1 on held-out images over the seeds.

    Returns:
      The learning rate; and the mean top-1 of each, empty if there is nothing to choose.
    """
    rates = recipe.learning_rates
    if len(rates) == 1:
        return rates[0], {}
    scores = []
    for seed in choices.seeds:
        rest, held_out = split_off(data, choices.holdout, seed)
        what = f"training {head} with {len(rates)} learning rates, seed {seed}"
        _, score = train_and_score(trainer, rest, held_out, rates, seed=seed, what=what)
        scores.append(score)
    top1 = np.mean([score.top1 for score in scores], 0)
    loss = np.nan_to_num(np.mean([score.loss for score in scores], 0), nan=np.inf)
    # Of those with the same top-1 the one with the smallest loss.
    best = np.lexsort((loss, -top1))[0]
    held_out_top1 = {f"{rate:g}": float(value) for rate, value in zip(rates, top1, strict=True)}
    return rates[best], held_out_top1


def _check_finite(weights: tuple[Any, Any], head: str, learning_rate: float) -> None:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights)):
        raise NonFiniteError(
            f"{head} diverged with the learning rate {learning_rate:g}: its weights are not finite;"
            " choose smaller --learning-rates"
        )


def _write_model(
    folder: str,
    encoder: Encoder,
    model: Model,
    head_weights: tuple[Any, Any],
    origin: dict[str, Any],
    class_names: Sequence[str],
) -> None:
    """Writes backbone and head as a model's folder."""
    trained = encoder.trained
    metadata = {
        "name": model.name,
        "arguments": model.arguments,
        "class_names": list(class_names),
        "preprocessing": trained.preprocessing.to_json(),
        "source": {
            "probe": trained.path,
            "step": trained.step,
            "sha256": encoder.record["sha256"],
            **origin,
        },
    }
    target = free_destination(folder, folder=True, overwrite=True)
    write_model_folder(target, metadata, encoder.weights_with(*head_weights), overwrite=True)


def _probe_neighbours(
    choices: Choices, training: Features, evaluation: Features, num_classes: int
) -> list[Row]:
    data, test = _data(training, POOLED), _data(evaluation, POOLED)
    neighbours = [k for k in choices.neighbours if k <= len(data)]
    if too_many := sorted(set(choices.neighbours) - set(neighbours)):
        console.warn(
            f"k-NN with k = {', '.join(map(str, too_many))} is left out: there are"
            f" {len(data):,} training images"
        )
    if not neighbours:
        return []
    started = time.monotonic()
    predicted = classify(
        data, test, neighbours, temperature=choices.temperature, num_classes=num_classes
    )
    seconds = time.monotonic() - started
    return [
        neighbour_row(
            k,
            temperature=choices.temperature,
            top1=100 * float((classes == test.labels).mean()),
            seconds=seconds,
        )
        for k, classes in predicted.items()
    ]


def _data(features: Features, kind: str) -> Data:
    return Data(features.arrays[kind], features.rows, features.labels)


def _folders(choices: Choices, workdir: epath.Path) -> dict[tuple[str, int], str]:
    """Returns the folder of the trained model by head and seed."""
    return {
        (head, seed): os.fspath(workdir / f"{head}-seed{seed}")
        for head in choices.heads
        for seed in choices.seeds
    }


def _num_parameters(model: Model) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(model.abstract()[0]["head"]))
