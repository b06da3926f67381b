"""MobileNetV2 in PyTorch: the original's keys, timm's, and what they tell of a model."""

import itertools
from collections.abc import Iterator
from typing import Any

from noah_jax.models.conversion import Rename, conv_norm, linear, noah_head, renamed
from noah_jax.models.mobilenetv2.modeling import STAGES, channels
from noah_jax.models.shapes import Shapes, likely_width_mult

TABLE = (
    *conv_norm("features.{i}.0", "features.{i}.1", "layers/{i}"),
    # The first block, which does not expand, before the general rows that also match it.
    *conv_norm("features.1.conv.0.0", "features.1.conv.0.1", "layers/1/depthwise"),
    *conv_norm("features.1.conv.1", "features.1.conv.2", "layers/1/project"),
    *conv_norm("features.{i}.conv.0.0", "features.{i}.conv.0.1", "layers/{i}/expand"),
    *conv_norm("features.{i}.conv.1.0", "features.{i}.conv.1.1", "layers/{i}/depthwise"),
    *conv_norm("features.{i}.conv.2", "features.{i}.conv.3", "layers/{i}/project"),
    *linear("head.2", "head/linear"),
    *noah_head(),
)

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _timm() -> Iterator[Rename]:
    """timm numbers the blocks of each stage, torchvision and the original number all of them."""
    yield Rename("conv_stem.weight", "features.0.0.weight")
    yield from renamed("bn1", "features.0.1", _NORM)
    index = 1
    for stage, depth in enumerate(depth for _, _, depth, _ in STAGES):
        for block in range(depth):
            foreign, original = f"blocks.{stage}.{block}", f"features.{index}.conv"
            # The first block does not expand.
            names = ["conv_pw", "conv_dw", "conv_pwl"] if stage else ["conv_dw", "conv_pw"]
            layers = [("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")][: len(names) - 1]
            layers.append(("2", "3") if stage else ("1", "2"))
            for i, (name, (conv, norm)) in enumerate(zip(names, layers, strict=True), start=1):
                yield Rename(f"{foreign}.{name}.weight", f"{original}.{conv}.weight")
                yield from renamed(f"{foreign}.bn{i}", f"{original}.{norm}", _NORM)
            index += 1
    yield Rename("conv_head.weight", "features.18.0.weight")
    yield from renamed("bn2", "features.18.1", _NORM)
    yield from renamed("classifier", "head.2")


TIMM = tuple(_timm())
RENAMES = (*renamed("classifier.1", "head.2"), *TIMM)


def infer_dimensions(shapes: Shapes) -> dict[str, Any]:
    """Returns the width multiplier of a state dict."""
    ends = list(itertools.accumulate(depth for _, _, depth, _ in STAGES))
    # The first block has no expansion.
    layers = [(f"features.{i}.conv", 2 if i > 1 else 1) for i in ends]
    actual = [
        shapes.channels("features.0.0", "features.0.1"),
        *(shapes.channels(f"{layer}.{i}", f"{layer}.{i + 1}") for layer, i in layers),
        shapes.channels("features.18.0", "features.18.1"),
    ]
    return {"width_mult": likely_width_mult(channels, actual, widest=-2)}
