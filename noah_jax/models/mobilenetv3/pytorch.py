"""MobileNetV3 in PyTorch: the original's keys, and what they tell of a model."""

from typing import Any

from noah_jax.models.conversion import Row, conv_norm, linear, noah_head
from noah_jax.models.family import Architecture
from noah_jax.models.mobilenetv3.modeling import LARGE, SMALL, Block, last_channels, scaled
from noah_jax.models.shapes import Shapes, likely_width_mult

TABLE = (
    *conv_norm("features.{i}.0", "features.{i}.1", "layers/{i}"),
    *conv_norm("features.{i}.conv.0", "features.{i}.conv.1", "layers/{i}/expand"),
    *conv_norm("features.{i}.conv.3", "features.{i}.conv.4", "layers/{i}/depthwise"),
    Row("features.{i}.conv.5.fc.0.weight", "params/layers/{i}/se/reduce/kernel", "linear"),
    Row("features.{i}.conv.5.fc.2.weight", "params/layers/{i}/se/expand/kernel", "linear"),
    *conv_norm("features.{i}.conv.7", "features.{i}.conv.8", "layers/{i}/project"),
    # The last convolution. With a linear head it is one layer further on, after the pooling.
    Row("features.{i}.weight", "params/layers/{i}/kernel", "conv"),
    Row("features.{i}.bias", "params/layers/{i}/bias"),
    *linear("classifier.1", "head/linear"),
    *noah_head("classifier"),
)


def _blocks(shapes: Shapes) -> tuple[Block, ...]:
    count = sum(f"features.{i}.conv.0.weight" in shapes for i in range(1, 16))
    return LARGE if count > len(SMALL) else SMALL


def is_kind(shapes: Shapes, architecture: Architecture) -> bool:
    """Returns whether a state dict has an architecture's blocks, those of "small" or of "large"."""
    return architecture.build.keywords["blocks"] == _blocks(shapes)


def infer_dimensions(shapes: Shapes) -> dict[str, Any]:
    """Returns the width multiplier of a state dict."""
    blocks = _blocks(shapes)
    layers = [f"features.{i}.conv" for i in range(1, len(blocks) + 1)]
    actual = [shapes.channels(f"{x}.{i}", f"{x}.{i + 1}") for x in layers for i in (0, 7)]
    # One layer further on with a linear head, after the pooling.
    last = shapes.channels(f"features.{len(blocks) + 2}", f"features.{len(blocks) + 3}")

    def channels(width_mult: float) -> list[int]:
        inside = [n for b in scaled(blocks, width_mult) for n in (b.hidden, b.features)]
        return [*inside, last_channels(width_mult)]

    return {"width_mult": likely_width_mult(channels, [*actual, last], widest=-3)}
