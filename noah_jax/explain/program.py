"""Explains images by one or two models and writes the page and the pictures."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from noah_jax import console
from noah_jax.compilation import DEFAULT_CACHE, enable_compilation_cache
from noah_jax.console import working
from noah_jax.data.image_files import FileSource, find_images
from noah_jax.errors import CorruptImageError, InputError, UsageError, shown
from noah_jax.explain.class_choice import ClassChoice, chosen_classes, parse_choice
from noah_jax.explain.explanation import Explainer, Explanation
from noah_jax.explain.overlay import common_scale, draw_maps, encode_png
from noah_jax.explain.overview import MOST_IMAGES, draw_overview
from noah_jax.explain.page import render_page
from noah_jax.files import make_folder, write_bytes, write_text
from noah_jax.inference.trained import TrainedModel, load_one


class ExplainedImage(NamedTuple):
    """One image and its explanation by each model; all of them have the same classes."""

    path: str
    by_model: list[Explanation]


def explain_all(
    checkpoints: Sequence[str],
    images: Sequence[str],
    *,
    classes: Sequence[str] = ("top3",),
    ema: bool = False,
    class_names: str | None = None,
    output: str = "explanation",
    overview: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> bool:
    """Explains images, writes the page and the pictures, and says where they are.

    Args:
      checkpoints: Paths of one or two models, see `noah_jax.inference.trained.load_one`.
      images: Image files, and folders of images.
      classes: Classes to explain, see `noah_jax.explain.class_choice.parse_choice`.
      ema: Use the exponential moving average of the weights.
      class_names: A text file with the name of one class a line.
      output: The folder for the results.
      overview: A PNG file to write, with all images in one picture.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.

    Returns:
      Whether all images could be read.

    Raises:
      NoahError: If something does not fit, before anything is written; or if the results cannot
        be written.
    """
    with working("loading the models"):
        models = _load(checkpoints, ema=ema, settings=settings)
    # If only one of them knows the names of its classes, they are used for both.
    named = next((model for model in models if model.class_names), models[0])
    names = named.display_names(class_names)
    explainers = [Explainer(model, names) for model in models]
    choices = [parse_choice(word, names, named.class_names or ()) for word in classes]
    enable_compilation_cache(DEFAULT_CACHE)
    paths = find_images(images)
    _check_overview(overview, len(paths))
    for model in models:
        model.say_preprocessing()
    explained = _explain_images(explainers, paths, choices)
    count = _write_page(epath.Path(output), explained, [model.path for model in models])
    console.say(f"{os.fspath(epath.Path(output) / 'index.html')} and {count} pictures beside it")
    if overview:
        _write_overview(epath.Path(overview), explained)
        console.say(f"{overview}, all images in one picture")
    return len(explained) == len(paths)


def _load(
    checkpoints: Sequence[str], *, ema: bool, settings: Mapping[str, Any] | None
) -> list[TrainedModel]:
    """Loads the models; raises unless they have the same classes."""
    if len(checkpoints) > 2:
        raise UsageError(f"--checkpoint can be given twice, not {len(checkpoints)} times")
    models = [load_one(path, ema=ema, settings=settings) for path in checkpoints]
    if len({model.model.num_classes for model in models}) > 1:
        counts = " and ".join(str(model.model.num_classes) for model in models)
        raise InputError(f"the checkpoints have {counts} classes and cannot be compared")
    if len({model.class_names for model in models if model.class_names}) > 1:
        raise InputError("the checkpoints have different classes and cannot be compared")
    return models


def _check_overview(overview: str | None, num_images: int) -> None:
    if not overview:
        return
    if not overview.endswith(".png"):
        raise UsageError(f"--overview {overview}: the name must end in .png")
    if num_images > MOST_IMAGES:
        raise UsageError(f"--overview takes up to {MOST_IMAGES} images, not {num_images}")


def _explain_images(
    explainers: Sequence[Explainer], paths: Sequence[str], choices: Sequence[ClassChoice]
) -> list[ExplainedImage]:
    """Explains the images that can be read, and prints a warning for each of the others."""
    source = FileSource(paths)
    explained = []
    with working("explaining", len(paths)) as work:
        for index in range(len(paths)):
            work.advance()
            try:
                data, _ = source[index]
                pixels = [explainer.pixels(data, paths[index]) for explainer in explainers]
            except CorruptImageError as error:
                console.warn(str(error))
                continue
            by_model = _explain(explainers, paths[index], pixels, choices)
            explained.append(ExplainedImage(paths[index], by_model))
    if not explained:
        raise InputError("none of the images can be read")
    return explained


def _explain(
    explainers: Sequence[Explainer],
    path: str,
    pixels: Sequence[np.ndarray],
    choices: Sequence[ClassChoice],
) -> list[Explanation]:
    """The explanation of one image by each model; the first one's logits choose the classes."""
    logits = [explainer.logits(x) for explainer, x in zip(explainers, pixels, strict=True)]
    for explainer, values in zip(explainers, logits, strict=True):
        if not np.isfinite(values).all():
            raise InputError(f"{path}: the logits of {explainer.path} are not finite")
    classes = chosen_classes(choices, logits[0])
    return [
        explainer.explain(x, values, classes)
        for explainer, x, values in zip(explainers, pixels, logits, strict=True)
    ]


def _write_page(
    folder: epath.Path, explained: Sequence[ExplainedImage], models: Sequence[str]
) -> int:
    """Writes the page and the pictures, each file whole; returns the number of pictures."""
    make_folder(folder)
    count = 0
    for number, (path, by_model) in enumerate(explained, start=1):
        stem = re.sub(r"[^\w-]+", "_", _stem(path))
        for evidence in zip(*(x.classes for x in by_model), strict=True):
            scale = common_scale(evidence)
            for letter, explanation, own in zip("ab", by_model, evidence, strict=False):
                suffix = f"_{letter}" if len(by_model) > 1 else ""
                name = f"{number:03}_{stem}_class{own.class_index}{suffix}.png"
                write_bytes(folder / name, encode_png(draw_maps(explanation, own, scale)))
                count += 1
    page = render_page(
        [shown(image.path) for image in explained],
        [shown(model) for model in models],
        [image.by_model for image in explained],
    )
    write_text(folder / "index.html", page)
    return count


def _write_overview(path: epath.Path, explained: Sequence[ExplainedImage]) -> None:
    """Writes the picture, with a row for each image and model."""
    rows = [
        (f"{_stem(image)}, {letter}" if len(by_model) > 1 else _stem(image), explanation)
        for image, by_model in explained
        for letter, explanation in zip("ab", by_model, strict=False)
    ]
    make_folder(path.parent)
    write_bytes(path, encode_png(draw_overview(rows)))


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(shown(path)))[0]
