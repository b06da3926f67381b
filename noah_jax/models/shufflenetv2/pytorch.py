"""ShuffleNetV2 in PyTorch: the original's keys, and what they tell of a model."""

from typing import Any

from noah_jax.models.conversion import conv_norm, linear, noah_head, renamed
from noah_jax.models.shapes import Shapes

_BRANCH = "stage{s}.{b}.branch"

TABLE = (
    *conv_norm("conv{c}.0", "conv{c}.1", "conv{c}"),
    *conv_norm(f"{_BRANCH}1.0", f"{_BRANCH}1.1", "stage{s}/{b}/branch1/0"),
    *conv_norm(f"{_BRANCH}1.2", f"{_BRANCH}1.3", "stage{s}/{b}/branch1/1"),
    *conv_norm(f"{_BRANCH}2.0", f"{_BRANCH}2.1", "stage{s}/{b}/branch2/0"),
    *conv_norm(f"{_BRANCH}2.3", f"{_BRANCH}2.4", "stage{s}/{b}/branch2/1"),
    *conv_norm(f"{_BRANCH}2.5", f"{_BRANCH}2.6", "stage{s}/{b}/branch2/2"),
    *linear("head.2", "head/linear"),
    *noah_head(),
)

RENAMES = tuple(renamed("fc", "head.2"))  # torchvision


def infer_dimensions(shapes: Shapes) -> dict[str, Any]:
    """Widths and depths of a state dict."""
    stages = (2, 3, 4)
    units = [f"stage{stage}.0.branch2" for stage in stages]
    widths = [2 * shapes.channels(f"{unit}.5", f"{unit}.6") for unit in units]
    return {
        "widths": (*widths, shapes.channels("conv5.0", "conv5.1")),
        "depths": tuple(shapes.depth(f"stage{stage}.") for stage in stages),
    }
