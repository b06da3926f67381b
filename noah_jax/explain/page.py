"""Renders the explanations of many images as one HTML page without external parts."""

import base64
import html
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from noah_jax.explain.explanation import ClassEvidence, Explanation
from noah_jax.explain.overlay import Scale, common_scale, encode_png

_WIDTH = 196  # of a map in pixels; page.html has the same number


def render_page(
    images: Sequence[str],
    models: Sequence[str],
    explanations: Sequence[Sequence[Explanation]],
) -> str:
    """Renders the page.

    Args:
      images: Names of the images.
      models: Names of the models.
      explanations: For each image its explanation by each model; those of one image have the same
        classes.

    Returns:
      The page in HTML.
    """
    styles: list[str] = []
    data: list[dict[str, Any]] = []
    body: list[str] = []
    for image, by_model in zip(images, explanations, strict=True):
        body.append(f"<section><h2>{html.escape(image)}</h2>")
        first = len(styles)
        styles += [_image_style(first + i, x.pixels) for i, x in enumerate(by_model)]
        for evidence in zip(*(x.classes for x in by_model), strict=True):
            scale = common_scale(evidence)
            body.append(
                f"<h3>{html.escape(evidence[0].name)} (class {evidence[0].class_index})</h3>"
                f"{_legend(scale)}<div class='models'>"
            )
            for i, (model, own) in enumerate(zip(models, evidence, strict=True)):
                body.append(_model(model, own, f"image i{first + i}", len(data)))
                data.append(_numbers(own, scale))
            body.append("</div>")
        body.append("</section>")
    template = importlib.resources.files("noah_jax.explain") / "page.html"
    page = template.read_text("utf-8")
    # The data comes last, because a class name in it may look like a placeholder.
    page = page.replace("@@IMAGES@@", "\n".join(styles)).replace("@@BODY@@", "\n".join(body))
    before, after = page.rsplit("@@DATA@@", 1)
    return before + json.dumps(data, separators=(",", ":")).replace("</", "<\\/") + after


def _image_style(number: int, pixels: np.ndarray) -> str:
    png = encode_png(Image.fromarray(pixels), optimize=True)
    uri = base64.b64encode(png).decode()
    height = round(_WIDTH * pixels.shape[0] / pixels.shape[1])
    return (
        f".i{number} {{ height: {height}px; background-image: url(data:image/png;base64,{uri}); }}"
    )


def _legend(scale: Scale) -> str:
    def bar(left: str, *colours: str, right: str) -> str:
        gradient = f"background: linear-gradient(to right, {', '.join(colours)})"
        return f"{left} <span class='bar' style='{gradient}'></span> {right}"

    largest = f"{scale.contribution:.3g}"
    contribution = bar(
        f"contribution -{largest}",
        *("rgba(30,70,210,.85)", "rgba(30,70,210,0)", "rgba(200,30,30,0)", "rgba(200,30,30,.85)"),
        right=f"+{largest}",
    )
    attention = bar(
        "attention 0", "rgba(250,180,0,0)", "rgba(250,180,0,.85)", right=f"{scale.attention:.3g}"
    )
    return f"<p>{contribution} &nbsp; {attention}</p>"


def _model(model: str, evidence: ClassEvidence, image: str, number: int) -> str:
    total = float(evidence.contributions.sum(dtype=np.float64))
    bias = float(evidence.bias.sum(dtype=np.float64))
    words = (
        f"{html.escape(model)}: logit {evidence.logit:.6f} = contributions {total:.6f}"
        f" {'-' if bias < 0 else '+'} bias {abs(bias):.6f};"
        f" probability {100 * evidence.probability:.2f} %"
    )
    css = image.removeprefix("image ")

    def figure(kind: str, block: int | str, caption: str) -> str:
        return (
            f"<figure><figcaption>{caption}</figcaption><div class='map {css}'"
            f" data-evidence='{number}' data-kind='{kind}' data-block='{block}'></div></figure>"
        )

    kinds = (("contributions", "contributions"), ("attention", "attention"))
    merged = "".join(figure(kind, "merged", caption) for kind, caption in kinds)
    blocks = "".join(
        "<div class='maps'>"
        + "".join(figure(kind, n, f"block {n + 1}: {caption}") for n in range(len(evidence.bias)))
        + "</div>"
        for kind, caption in kinds
    )
    return (
        f"<div class='model'><p>{words}</p><div class='maps'><figure><figcaption>image</figcaption>"
        f"<div class='{image}'></div></figure>{merged}</div>"
        f"<details><summary>each block</summary>{blocks}</details></div>"
    )


def _numbers(evidence: ClassEvidence, scale: Scale) -> dict[str, Any]:
    """Returns the numbers that the page's script draws; decimals that give each float32 exactly."""

    def blocks(maps: np.ndarray) -> list[list[float]]:
        return [[float(str(x)) for x in block.ravel()] for block in maps]

    rows, columns = evidence.attention.shape[1:]
    return {
        "rows": rows,
        "columns": columns,
        "attention": blocks(evidence.attention),
        "contributions": blocks(evidence.contributions),
        "scale": [scale.contribution, scale.attention],
    }
