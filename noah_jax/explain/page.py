"""Renders the explanations of many images as one HTML page without external parts."""

import base64
import html
import importlib.resources
import io
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from noah_jax.explain.colours import KINDS, MIDDLE_GREY, TABLES, Kind, greyed
from noah_jax.explain.explanation import ClassEvidence, Crop, ExplainedImage
from noah_jax.explain.maps import (
    Scale,
    blocks,
    caption,
    common_scale,
    kinds_of,
    logit_sum,
    percent,
    short_number,
)
from noah_jax.explain.photo import describe_crops, leaves_out
from noah_jax.pictures.layout import encode_png

_STOPS = 33  # of the colour bars' gradients
_DRAWING = 128  # an image of fewer pixels a side is no photograph, and JPEG would blur it


def render_page(
    images: Sequence[ExplainedImage], models: Sequence[str], *, cells: bool = False
) -> str:
    """Renders the page.

    Args:
      images: The images and their explanations.
      models: Names of the models.
      cells: Whether the page shows each position as a rectangle until somebody switches.

    Returns:
      The page in HTML.
    """
    backgrounds: dict[bytes, int] = {}
    styles: list[str] = []
    data: list[dict[str, Any]] = []
    body: list[str] = []
    for number, image in enumerate(images, start=1):
        scale = common_scale([x for one in image.by_model for x in one.classes])
        body.append(
            f"<section id='image{number}'><h2>{html.escape(image.path)}</h2>"
            f"<div class='columns'><div class='whole'>{_whole(image)}</div><div class='classes'>"
        )
        for position in range(len(image.by_model[0].classes)):
            body.append(_heading(image.by_model[0].classes[position]))
            for model, explanation in zip(models, image.by_model, strict=True):
                # Models that are given the same pixels share a background.
                key = explanation.pixels.tobytes()
                if key not in backgrounds:
                    backgrounds[key] = len(styles)
                    styles.append(_background(len(styles), explanation.pixels))
                evidence = explanation.classes[position]
                words = f"<p class='path'>{html.escape(model)}</p>" if len(models) > 1 else ""
                body.append(words + _model(evidence, scale, len(data), backgrounds[key]))
                data.append(_numbers(evidence, scale))
            body.append("</div></article>")
        body.append("</div></div></section>")
    parts = {
        "IMAGES": "\n".join([*styles, *map(_gradient, KINDS)]),
        "MODELS": _model_names(models),
        "READING": _reading(images),
        "CELLS": " checked" if cells else "",
        "BODY": "\n".join(body),
        "COLOURS": json.dumps({kind: TABLES[kind].tolist() for kind in KINDS}),
        "DATA": json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
    }
    template = importlib.resources.files("noah_jax.explain") / "page.html"
    # In one pass, because a name may look like a placeholder.
    return re.sub("@@([A-Z]+)@@", lambda found: parts[found[1]], template.read_text("utf-8"))


def _model_names(models: Sequence[str]) -> str:
    names = " and ".join(f"<span class='path'>{html.escape(model)}</span>" for model in models)
    return f"Model{'s' if len(models) > 1 else ''}: {names}."


def _reading(images: Sequence[ExplainedImage]) -> str:
    """Says what the maps are that the heads on the page have."""
    kinds = {kinds_of(x) for image in images for one in image.by_model for x in one.classes}
    summed = (
        "A contribution is what the head adds to the logit at a position; NOAH adds its attention"
        " times the value there. The contributions of all positions plus the bias add up to the"
        " logit: <b>red</b> adds to it, <b>blue</b> subtracts from it."
    )
    alone = (
        "The logits of a head without contributions are no sum over positions, so its maps show"
        " the attention alone: the brighter, the more."
    )
    return " ".join(([summed] if KINDS in kinds else []) + ([alone] if kinds != {KINDS} else []))


def _whole(image: ExplainedImage) -> str:
    """The whole image, once, with the frames of what the models see."""
    crops = list(dict.fromkeys(crop for crop in image.crops if leaves_out(crop)))
    frames = "".join(map(_frame, crops))
    height, width = image.photo.shape[:2]
    alternative = html.escape(image.path, quote=True)
    caption = "; ".join(filter(None, ("image", describe_crops(image.crops))))
    # As wide as there is room, but no higher than most of the window.
    style = f"width:calc(75vh * {width / height:.4f})"
    return (
        f"<figure><div class='image' style='{style}'><img src='{_data_uri(image.photo)}'"
        f" alt='{alternative}' width='{width}' height='{height}'>{frames}</div>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _frame(crop: Crop) -> str:
    left, top, right, bottom = (100 * min(max(x, 0), 1) for x in crop)
    return (
        f"<div class='frame' style='left:{left:.2f}%;top:{top:.2f}%;"
        f"width:{right - left:.2f}%;height:{bottom - top:.2f}%'></div>"
    )


def _data_uri(pixels: np.ndarray) -> str:
    if max(pixels.shape) <= _DRAWING:
        return f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=88, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"


def _background(number: int, pixels: np.ndarray) -> str:
    height, width = pixels.shape[:2]
    return (
        f".i{number} {{ aspect-ratio: {width} / {height};"
        f" background-image: url({_data_uri(greyed(pixels))}); }}"
    )


def _gradient(kind: Kind) -> str:
    """The colours of the bar, from the same table as the maps."""
    table = TABLES[kind]
    rows = table[np.linspace(0, len(table) - 1, _STOPS).round().astype(int)].tolist()
    stops = ", ".join(f"rgba({r},{g},{b},{a / 255:.3f})" for r, g, b, a in rows)
    grey = f"rgb({MIDDLE_GREY},{MIDDLE_GREY},{MIDDLE_GREY})"
    return f".bar.{kind} {{ background: linear-gradient(to right, {stops}), {grey}; }}"


def _heading(evidence: ClassEvidence) -> str:
    return (
        f"<article class='class'><h3>{html.escape(evidence.name)}"
        f" <span class='index'>class {evidence.class_index}</span></h3><div class='models'>"
    )


def _model(evidence: ClassEvidence, scale: Scale, number: int, background: int) -> str:
    words = f"<span class='number probability'>{percent(evidence.probability)}</span>"
    for part in logit_sum(evidence, 6):
        words += f" <span class='number'>{part}</span>"
    figures = "".join(
        _figure(kind, caption(evidence, kind), scale, number, background)
        for kind in kinds_of(evidence)
    )
    return (
        f"<div class='model' data-evidence='{number}'><p>{words}</p>"
        f"<div class='maps'>{figures}</div>{_block_choice(evidence)}</div>"
    )


def _figure(kind: Kind, name: str, scale: Scale, number: int, background: int) -> str:
    largest = scale.merged[kind]
    low = short_number(-largest, kind) if kind == "contributions" else "0"
    middle = "<span>0</span>" if kind == "contributions" else ""
    return (
        f"<figure><figcaption>{name}</figcaption>"
        f"<div class='map i{background}' data-evidence='{number}' data-kind='{kind}'"
        f" data-block='merged' tabindex='0' role='application'"
        f" aria-label='{name}; arrow keys go from position to position'></div>"
        f"<div class='bar {kind}'></div><div class='ticks'><span>{low}</span>{middle}"
        f"<span>{short_number(largest, kind)}</span></div></figure>"
    )


def _block_choice(evidence: ClassEvidence) -> str:
    """The choice of the block that the maps show; nothing if the head has a single one."""
    count = len(evidence.attention)
    if count == 1:
        return ""
    choices = [("merged", "all blocks"), *((str(n), f"block {n + 1}") for n in range(count))]
    buttons = "".join(
        f"<button type='button' role='radio' data-block='{block}'"
        f" aria-checked='{'true' if block == 'merged' else 'false'}'"
        f" tabindex='{0 if block == 'merged' else -1}'><span class='small'></span>{name}</button>"
        for block, name in choices
    )
    return f"<div class='blocks' role='radiogroup' aria-label='blocks'>{buttons}</div>"


def _numbers(evidence: ClassEvidence, scale: Scale) -> dict[str, Any]:
    """Returns the numbers that the page's script draws; decimals that give each float32 exactly."""
    rows, columns = evidence.attention.shape[1:]
    maps: dict[str, Any] = {
        kind: [[float(str(x)) for x in block.ravel()] for block in blocks(evidence, kind)]
        for kind in kinds_of(evidence)
    }
    return {
        "rows": rows,
        "columns": columns,
        **maps,
        "scale": {kind: [scale.merged[kind], scale.blocks[kind]] for kind in kinds_of(evidence)},
    }
