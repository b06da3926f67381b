"""The toy backbone in PyTorch: its keys, and what they tell of a model."""

from typing import Any

from noah_jax.models.conversion import conv_norm, linear, noah_head, renamed
from noah_jax.models.shapes import Shapes

TABLE = (
    *conv_norm("layers.{i}.0", "layers.{i}.1", "layers/{i}"),
    *linear("head.2", "head/linear"),
    *noah_head(),
)

RENAMES = tuple(renamed("fc", "head.2"))


def infer_dimensions(shapes: Shapes) -> dict[str, Any]:
    """Width and depth of a state dict."""
    return {"width": shapes.channels("layers.0.0", "layers.0.1"), "depth": shapes.depth("layers.")}
