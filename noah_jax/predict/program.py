"""Classifies image files and prints a line for each."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from noah_jax import console
from noah_jax.compilation import DEFAULT_CACHE, enable_compilation_cache
from noah_jax.console import say, working
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.image_files import FileSource, find_images
from noah_jax.errors import InputError, shown
from noah_jax.inference.runner import Inference
from noah_jax.inference.trained import TrainedModel, load_one
from noah_jax.paths import expand_home

_WIDEST = 60  # characters of a path up to which the columns stay aligned


def predict(
    trained: TrainedModel,
    paths: Sequence[str],
    *,
    class_names: Sequence[str],
    top: int,
    batch_size: int,
    corrupt_images: CorruptImages,
    num_threads: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Finds the most likely classes of each image, in order.

    Args:
      trained: The model.
      paths: Paths of the image files.
      class_names: Names of the classes.
      top: Number of classes.
      batch_size: Images at a time.
      corrupt_images: Records the images that cannot be read; they are left out.
      num_threads: Threads that decode; `None` is one for every core.

    Yields:
      `{"file": ..., "classes": [{"class": 3, "name": ..., "probability": 0.9}, ...]}`, the most
      likely class first. For the probabilities see `TrainedModel.probabilities`.

    Raises:
      InputError: If a logit is not finite.
    """
    count = min(top, trained.model.num_classes)

    def best(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        del labels
        # Ranked by logits, because different logits may round to the same probability.
        classes = jax.lax.top_k(logits, count)[1]
        probabilities = jnp.take_along_axis(trained.probabilities(logits), classes, axis=-1)
        finite = jnp.isfinite(logits).all(-1)
        return {"probabilities": probabilities, "classes": classes, "finite": finite}

    batch_size = max(1, min(batch_size, len(paths)))
    inference = Inference(trained.model, trained.preprocessing, best, batch_size=batch_size)
    source = DecodedSource(FileSource(paths))
    for indices, values in inference.run(
        trained, source, corrupt_images=corrupt_images, num_threads=num_threads
    ):
        for index, classes, probabilities, finite in zip(
            indices.tolist(),
            values["classes"].tolist(),
            values["probabilities"].tolist(),
            values["finite"].tolist(),
            strict=True,
        ):
            if not finite:
                raise InputError(f"{paths[index]}: the logits of {trained.path} are not finite")
            ranked = [
                {"class": class_index, "name": class_names[class_index], "probability": probability}
                for class_index, probability in zip(classes, probabilities, strict=True)
            ]
            yield {"file": paths[index], "classes": ranked}


def predict_all(
    paths: Sequence[str],
    checkpoint: str,
    *,
    ema: bool = False,
    top: int = 5,
    class_names: str | None = None,
    batch_size: int = 64,
    num_threads: int | None = None,
    as_json: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> bool:
    """Classifies images and prints a line for each.

    Args:
      paths: Images, folders of images, and `-` for the paths on standard input.
      checkpoint: Path of the model, see `noah_jax.inference.trained.load_one`.
      ema: Use the exponential moving average of the weights.
      top: Number of classes to print.
      class_names: A text file with the name of one class a line.
      batch_size: Images at a time.
      num_threads: Threads that decode; `None` is one for every core.
      as_json: Print one JSON object a line.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.

    Returns:
      Whether all images could be read.

    Raises:
      NoahError: If the model or the class names do not fit, or there are no images.
    """
    files = find_images(list(_expand(paths)))
    if not files:
        raise InputError("there are no paths on stdin")
    with working(f"loading {checkpoint}"):
        trained = load_one(checkpoint, ema=ema, settings=settings)
    trained.check_head()
    names = trained.display_names(class_names)
    trained.say_preprocessing()
    enable_compilation_cache(DEFAULT_CACHE)
    corrupt_images = CorruptImages("replace", tell=console.warn)
    width = min(_WIDEST, max(len(shown(file)) for file in files))
    results = predict(
        trained,
        files,
        class_names=names,
        top=top,
        batch_size=batch_size,
        corrupt_images=corrupt_images,
        num_threads=num_threads,
    )
    with working("classifying", len(files)) as work:
        for result in results:
            say(json.dumps(result) if as_json else _row(result, width))
            work.advance()
    if corrupt_images:
        console.warn(f"{len(corrupt_images)} of {len(files)} images could not be read, see above")
    return not corrupt_images


def _expand(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            yield from (expand_home(line.rstrip("\n")) for line in sys.stdin if line.strip())
        else:
            yield path


def _row(result: dict[str, Any], width: int) -> str:
    cells = [f"{100 * x['probability']:5.1f}% {x['name']}" for x in result["classes"]]
    return f"{shown(result['file']):{width}}  " + "  ".join(cells)
