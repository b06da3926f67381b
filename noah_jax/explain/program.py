"""Explains images by one or two models and writes the page and the pictures."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from noah_jax import console
from noah_jax.compilation import DEFAULT_CACHE, enable_compilation_cache
from noah_jax.console import working
from noah_jax.data.decoding import decode
from noah_jax.data.image_files import FileSource, find_images
from noah_jax.errors import CorruptImageError, InputError, UsageError, shown
from noah_jax.explain.class_choice import ClassChoice, chosen_classes, parse_choice
from noah_jax.explain.class_picture import draw_class
from noah_jax.explain.explanation import ExplainedImage, Explainer, Explanation
from noah_jax.explain.maps import common_scale
from noah_jax.explain.overview import MOST_IMAGES, draw_overview
from noah_jax.explain.page import render_page
from noah_jax.explain.photo import whole_photo
from noah_jax.files import make_folder, write_bytes, write_text
from noah_jax.inference.trained import TrainedModel, load_one
from noah_jax.pictures.fonts import fonts
from noah_jax.pictures.layout import encode_png


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
    cells: bool = False,
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
      cells: Draw each position as a rectangle instead of a smooth surface.

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
    # One warning names all characters that no font has.
    fonts().families("".join([*names, *paths]))
    model_names = [shown(model.path) for model in models]
    count = _write_page(epath.Path(output), explained, model_names, cells=cells)
    console.say(f"{os.fspath(epath.Path(output) / 'index.html')} and {count} pictures beside it")
    if overview:
        stems = [_stem(image.path) for image in explained]
        picture = draw_overview(explained, stems, model_names, cells=cells)
        make_folder(epath.Path(overview).parent)
        write_bytes(overview, encode_png(picture))
        console.say(f"{overview}, all images in one picture")
    return len(explained) == len(paths)


def _load(
    checkpoints: Sequence[str], *, ema: bool, settings: Mapping[str, Any] | None
) -> list[TrainedModel]:
    """Loads the models; raises unless they have the same classes."""
    if len(checkpoints) > 2:
        raise UsageError(f"--checkpoint can be given twice, not {len(checkpoints)} times")
    models = [load_one(path, ema=ema, settings=settings) for path in checkpoints]
    for model in models:
        model.check_head()
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
                photo = decode(data, paths[index])
                pixels = [explainer.pixels(data, paths[index]) for explainer in explainers]
            except CorruptImageError as error:
                console.warn(str(error))
                continue
            by_model = _explain(explainers, paths[index], pixels, choices)
            crops = tuple(explainer.crop(*photo.shape[:2]) for explainer in explainers)
            explained.append(
                ExplainedImage(shown(paths[index]), whole_photo(photo), crops, tuple(by_model))
            )
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
    folder: epath.Path, explained: Sequence[ExplainedImage], models: Sequence[str], *, cells: bool
) -> int:
    """Writes the page and the pictures, each file whole; returns the number of pictures."""
    make_folder(folder)
    count = 0
    for number, image in enumerate(explained, start=1):
        stem = re.sub(r"[^\w-]+", "_", _stem(image.path))
        scale = common_scale([x for one in image.by_model for x in one.classes])
        for i, (letter, explanation) in enumerate(zip("ab", image.by_model, strict=False)):
            suffix, name = (f"_{letter}", models[i]) if len(models) > 1 else ("", None)
            for evidence in explanation.classes:
                picture = draw_class(image, i, evidence, scale, model_name=name, cells=cells)
                file = f"{number:03}_{stem}_class{evidence.class_index}{suffix}.png"
                write_bytes(folder / file, encode_png(picture))
                count += 1
    write_text(folder / "index.html", render_page(explained, models, cells=cells))
    return count


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
