"""Averages checkpoints, all of them or those that help, and writes the model."""

from collections.abc import Iterator, Sequence
from typing import Any

from noah_jax import console
from noah_jax.average.mean import Mean, check_alike, with_weights
from noah_jax.compilation import DEFAULT_CACHE, enable_compilation_cache
from noah_jax.console import say, working
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.errors import InputError
from noah_jax.evaluation.dataset import DatasetChoice, open_dataset
from noah_jax.evaluation.run import evaluate, make_inference
from noah_jax.inference.trained import (
    CheckpointPath,
    TrainedModel,
    find_checkpoints,
    load_trained,
)
from noah_jax.runs.destination import free_destination
from noah_jax.runs.model_folder import write_model_folder


def average(
    checkpoints: Sequence[str],
    output: str,
    *,
    ema: bool = False,
    overwrite: bool = False,
    decide_on: DatasetChoice | None = None,
    batch_size: int = 128,
    num_threads: int | None = None,
) -> None:
    """Averages checkpoints and writes the average as a model's folder.

    Args:
      checkpoints: Paths of the models, see `noah_jax.inference.trained.find_checkpoints`.
      output: The folder to write.
      ema: Average the exponential moving averages.
      overwrite: Whether a folder that this program wrote is replaced.
      decide_on: The images that decide which checkpoints stay; `None` keeps all.
      batch_size: Images at a time.
      num_threads: Threads that decode; `None` is one for every core.

    Raises:
      NoahError: If something does not fit, before anything is written.
    """
    target = free_destination(output, folder=True, overwrite=overwrite)
    paths = find_checkpoints(checkpoints)
    if len(paths) < 2:
        raise InputError(
            f"an average needs at least two checkpoints, got {len(paths)}: {paths[0].name};"
            " RUN/checkpoints stands for all checkpoints of a run"
        )
    with working("looking at the checkpoints"):
        first = load_trained(*paths[0], ema=ema)
    first.check_head()
    if decide_on is None:
        kept, weights = [path.name for path in paths], _mean_of_all(paths, first)
        measured: dict[str, Any] = {}
    else:
        judge = _Judge(first, decide_on, batch_size=batch_size, num_threads=num_threads)
        kept, weights, measured = _greedy(paths, first, judge)
    params, stats = weights
    if stats:
        say("BatchNorm's statistics are averaged too")
    metadata = {
        "name": first.model.name,
        "arguments": first.model.arguments,
        "class_names": None if first.class_names is None else list(first.class_names),
        "preprocessing": first.preprocessing.to_json(),
        "training": first.evaluation_config(),
        "source": {"average_of": kept, "ema": ema, "greedy": decide_on is not None, **measured},
    }
    write_model_folder(target, metadata, {"params": params, "stats": stats}, overwrite=overwrite)
    say(f"averaged {len(kept)} checkpoints: noah_jax.load_model({output!r})")


def _others(paths: Sequence[CheckpointPath], first: TrainedModel) -> Iterator[TrainedModel]:
    """Yields the first model and loads the others, one at a time."""
    yield first
    for path in paths[1:]:
        other = load_trained(*path, ema=first.ema)
        check_alike(first, [other])
        yield other


def _mean_of_all(paths: Sequence[CheckpointPath], first: TrainedModel) -> Any:
    mean = Mean()
    with working("averaging", len(paths)) as work:
        for number, model in enumerate(_others(paths, first), start=1):
            if number == len(paths):
                return mean.of(model)
            mean.add(model)
            work.advance(1)
    raise AssertionError("there are at least two")


class _Judge:
    """Evaluates models of one kind on the same images.

    Attributes:
      measure: Which measure decides, in percent.
    """

    def __init__(
        self,
        first: TrainedModel,
        choice: DatasetChoice,
        *,
        batch_size: int,
        num_threads: int | None,
    ) -> None:
        enable_compilation_cache(DEFAULT_CACHE)
        encoded = open_dataset(choice, first)
        self.name = encoded.name
        self.measure = "map" if first.multi_label else "top1"
        self._source = DecodedSource(encoded)
        self._inference = make_inference(first, min(batch_size, max(1, len(encoded))))
        self._corrupt = CorruptImages("replace", tell=console.warn)
        self._num_threads = num_threads

    def __call__(self, model: TrainedModel) -> float:
        results = evaluate(
            self._inference,
            model,
            self._source,
            corrupt_images=self._corrupt,
            num_threads=self._num_threads,
        )
        value = results.summary()[self.measure]
        if value is None:
            raise InputError(f"{self.name} has no image with a label, so it decides nothing")
        return float(value)


def _greedy(
    paths: Sequence[CheckpointPath], first: TrainedModel, judge: _Judge
) -> tuple[list[str], Any, dict[str, Any]]:
    """Makes a greedy soup (Wortsman et al., 2022, recipe 1).

    Returns:
      The names of the checkpoints that stay, their mean `(params, stats)`, and what was measured.
    """
    say(f"decides by {judge.measure} on {judge.name}")
    alone = {path: judge(model) for path, model in zip(paths, _others(paths, first), strict=True)}
    order = sorted(paths, key=lambda path: -alone[path])
    width = max(len(path.name) for path in paths)
    say(f"{'checkpoint':{width}}    alone  average")
    mean, best = Mean(), -1.0
    kept: list[str] = []
    weights: Any = None
    for path in order:
        model = load_trained(*path, ema=first.ema)
        candidate = mean.of(model)
        value = judge(with_weights(model, candidate)) if kept else alone[path]
        stays = value >= best
        if stays:
            mean.add(model)
            kept.append(path.name)
            best, weights = value, candidate
        note = "" if stays else "  left out"
        say(f"{path.name:{width}} {alone[path]:7.2f}% {value:7.2f}%{note}")
    best_alone = alone[order[0]]
    say(f"average of {len(kept)} of {len(paths)}: {best:.2f}%, the best alone {best_alone:.2f}%")
    return kept, weights, {"decided_on": judge.name, judge.measure: best}
