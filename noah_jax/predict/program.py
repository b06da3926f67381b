"""What `python -m noah_jax.predict` does once its command line is parsed."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from noah_jax import console
from noah_jax.compilation import enable_compilation_cache
from noah_jax.config import default_config
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.image_files import FileSource, find_images
from noah_jax.errors import InputError
from noah_jax.inference.runner import Inference
from noah_jax.inference.trained import TrainedModel, load_one

_WIDEST = 60  # characters of a path up to which the columns stand in line


def predict(
    trained: TrainedModel,
    paths: Sequence[str],
    *,
    names: Sequence[str],
    top: int,
    batch_size: int,
    corrupt_images: CorruptImages,
    num_threads: int | None = None,
) -> Iterator[dict[str, Any]]:
    """The most likely classes of each image, in order; corrupt ones are left out.

    Args:
      trained: the model.
      paths: of the image files.
      names: of the classes.
      top: how many classes.
      batch_size: images at a time.
      corrupt_images: what to do about images that cannot be read.
      num_threads: that decode; `None` is one for every core.

    Yields:
      `{"file": ..., "classes": [{"class": 3, "name": ..., "probability": 0.9}, ...]}`, the most
      likely class first. Of a model for several labels each probability is a class's own.

    Raises:
      ValueError: if a logit is not finite.
    """
    count = min(top, trained.model.num_classes)

    def best(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        del labels
        # By the logits: probabilities that round to one another are in no order.
        classes = jax.lax.top_k(logits, count)[1]
        probabilities = jnp.take_along_axis(trained.probabilities(logits), classes, axis=-1)
        finite = jnp.isfinite(logits).all(-1)
        return {"probabilities": probabilities, "classes": classes, "finite": finite}

    batch_size = max(1, min(batch_size, len(paths)))
    inference = Inference(trained.model, trained.preprocessing, best, batch_size=batch_size)
    source = DecodedSource(FileSource(paths))
    for indices, found in inference.run(
        trained, source, corrupt_images=corrupt_images, num_threads=num_threads
    ):
        for index, classes, probabilities, finite in zip(
            indices.tolist(),
            found["classes"].tolist(),
            found["probabilities"].tolist(),
            found["finite"].tolist(),
            strict=True,
        ):
            if not finite:
                raise InputError(f"{paths[index]}: the logits of {trained.path} are not finite")
            ranked = [
                {"class": number, "name": names[number], "probability": probability}
                for number, probability in zip(classes, probabilities, strict=True)
            ]
            yield {"file": paths[index], "classes": ranked}


def predict_all(given: argparse.Namespace) -> int:
    """Classifies the images and prints what they are; 1 if some could not be read.

    Raises:
      ValueError, OSError, CheckpointError: if the model or a list of names does not fit, or
        there are no images.
    """
    paths = find_images(list(_expand(given.paths)))
    if not paths:
        raise InputError("there are no paths on stdin")
    trained = load_one(given.checkpoint, ema=given.ema)
    names = trained.display_names(given.class_names)
    enable_compilation_cache(default_config().compilation_cache)
    corrupt_images = CorruptImages("replace", tell=console.warn)
    width = min(_WIDEST, max(map(len, paths)))
    results = predict(
        trained,
        paths,
        names=names,
        top=given.top,
        batch_size=given.batch,
        corrupt_images=corrupt_images,
        num_threads=given.threads,
    )
    # Where the results go to the terminal they are progress enough.
    quiet = True if sys.stdout.isatty() else None
    for result in tqdm(results, total=len(paths), unit=" images", disable=quiet, leave=False):
        print(json.dumps(result) if given.json else _row(result, width))
    sys.stdout.flush()
    if corrupt_images:
        console.warn(f"{len(corrupt_images)} of {len(paths)} images could not be read, named above")
    return 1 if corrupt_images else 0


def _expand(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        else:
            yield path


def _row(result: dict[str, Any], width: int) -> str:
    cells = [f"{100 * x['probability']:5.1f}% {x['name']}" for x in result["classes"]]
    return f"{result['file']:{width}}  " + "  ".join(cells)
