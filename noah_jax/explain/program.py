"""What `python -m noah_jax.explain` does once its command line is parsed."""

import argparse
import io
import os
import re
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from noah_jax import console
from noah_jax.compilation import enable_compilation_cache
from noah_jax.config import default_config
from noah_jax.data.image_files import FileSource, find_images
from noah_jax.errors import CorruptImageError, InputError, UsageError
from noah_jax.explain.explanation import Explainer, Explanation
from noah_jax.explain.overlay import common_scale, strip
from noah_jax.explain.overview import MOST_IMAGES, overview
from noah_jax.explain.page import render_page
from noah_jax.files import write_text
from noah_jax.inference.trained import load_one

_TOP = re.compile(r"top(\d+)")


def explain_all(given: argparse.Namespace) -> int:
    """Writes the page and the pictures; 1 if some images could not be read.

    Raises:
      UsageError, ValueError, OSError, CheckpointError: if something does not fit, before
        anything is written.
    """
    if len(given.checkpoint) > 2:
        raise UsageError(f"--checkpoint can be given twice, not {len(given.checkpoint)} times")
    models = [load_one(path, ema=given.ema) for path in given.checkpoint]
    if len({model.model.num_classes for model in models}) > 1:
        counts = " and ".join(str(model.model.num_classes) for model in models)
        raise InputError(f"the checkpoints have {counts} classes and cannot be compared")
    if len({model.class_names for model in models if model.class_names}) > 1:
        raise InputError("the checkpoints have other classes and cannot be compared")
    # Names that one of them knows do for both.
    known = next((m for m in models if m.class_names), models[0])
    names = known.display_names(given.class_names)
    explainers = [Explainer(model, names) for model in models]
    labels = list(known.class_names or [])
    chosen = [_parse(token, names, labels) for token in given.classes]
    enable_compilation_cache(default_config().compilation_cache)

    paths = find_images(given.image)
    if given.overview and not given.overview.endswith(".png"):
        raise UsageError(f"--overview {given.overview}: the name must end in .png")
    if given.overview and len(paths) > MOST_IMAGES:
        raise UsageError(f"--overview takes up to {MOST_IMAGES} images, not {len(paths)}")
    source = FileSource(paths)
    explained: list[tuple[str, list[Explanation]]] = []
    for index in tqdm(range(len(paths)), unit=" images", disable=None, leave=False):
        try:
            data, _ = source[index]
            pixels = [explainer.pixels(data, paths[index]) for explainer in explainers]
        except CorruptImageError as error:
            console.warn(str(error))
            continue
        logits = [
            explainer.logits(shown) for explainer, shown in zip(explainers, pixels, strict=True)
        ]
        for model, found in zip(models, logits, strict=True):
            if not np.isfinite(found).all():
                raise InputError(f"{paths[index]}: the logits of {model.path} are not finite")
        classes = _classes(chosen, logits[0])
        explanations = [
            explainer.explain(shown, found, classes)
            for explainer, shown, found in zip(explainers, pixels, logits, strict=True)
        ]
        explained.append((paths[index], explanations))
    if not explained:
        raise InputError("none of the images can be read")
    folder = epath.Path(given.output)
    pictures = _write(folder, explained, [model.path for model in models])
    console.say(f"{os.fspath(folder / 'index.html')} and {pictures} pictures beside it")
    if given.overview:
        _write_overview(epath.Path(given.overview), explained)
        console.say(f"{given.overview}, all images in one")
    return 0 if len(explained) == len(paths) else 1


def _parse(token: str, names: Sequence[str], labels: Sequence[str]) -> tuple[str, int]:
    """`("top", 3)` or `("class", number)` of one of --classes."""
    if match := _TOP.fullmatch(token):
        if not 1 <= (count := int(match[1])) <= len(names):
            raise UsageError(f"--classes {token}: there are {len(names)} classes")
        return "top", count
    if token.isdigit():
        if int(token) >= len(names):
            raise UsageError(f"--classes {token}: the classes are 0 to {len(names) - 1}")
        return "class", int(token)
    wanted = token.casefold()
    for known in (labels, names):
        found = [i for i, name in enumerate(known) if name.casefold() == wanted]
        if len(found) == 1:
            return "class", found[0]
        if found:
            numbers = ", ".join(map(str, found))
            raise UsageError(f"--classes {token}: several are called so, take one of {numbers}")
    near = [name for name in names if wanted in name.casefold()][:3]
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise UsageError(f"--classes: no class is called {token!r}{hint}")


def _classes(chosen: Sequence[tuple[str, int]], logits: np.ndarray) -> list[int]:
    """The classes' numbers for an image, each once."""
    order = np.argsort(-logits, kind="stable").tolist()
    numbers: list[int] = []
    for kind, value in chosen:
        numbers += order[:value] if kind == "top" else [value]
    return list(dict.fromkeys(numbers))


def _write(
    folder: epath.Path, explained: Sequence[tuple[str, list[Explanation]]], models: Sequence[str]
) -> int:
    """Writes everything, each file whole; returns how many pictures there are."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for number, (path, by_model) in enumerate(explained, start=1):
        stem = re.sub(r"[^\w-]+", "_", os.path.splitext(os.path.basename(path))[0])
        for evidence in zip(*(x.classes for x in by_model), strict=True):
            scale = common_scale(evidence)
            for letter, explanation, own in zip("ab", by_model, evidence, strict=False):
                which = f"_{letter}" if len(by_model) > 1 else ""
                name = f"{number:03}_{stem}_class{own.number}{which}.png"
                (folder / name).write_bytes(_png(strip(explanation, own, scale)))
                count += 1
    page = render_page([path for path, _ in explained], models, [x for _, x in explained])
    write_text(folder / "index.html", page)
    return count


def _write_overview(path: epath.Path, explained: Sequence[tuple[str, list[Explanation]]]) -> None:
    """A row for each image and, of two checkpoints, for each of them; the file appears whole."""
    rows = []
    for image, by_model in explained:
        name = os.path.splitext(os.path.basename(image))[0]
        for letter, explanation in zip("ab", by_model, strict=False):
            rows.append((f"{name}, {letter}" if len(by_model) > 1 else name, explanation))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"
    partial.write_bytes(_png(overview(rows)))
    partial.replace(path)


def _png(picture: Image.Image) -> bytes:
    png = io.BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()
