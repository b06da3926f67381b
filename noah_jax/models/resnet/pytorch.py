"""ResNet in PyTorch: the original's keys, and what they tell of a model."""

from typing import Any

from noah_jax.models.conversion import Row, batch_norm, linear, noah_head, renamed
from noah_jax.models.family import Architecture
from noah_jax.models.resnet.modeling import BasicBlock, Bottleneck
from noah_jax.models.shapes import Shapes

TABLE = (
    Row("conv1.weight", "params/conv1/kernel", "conv"),
    *batch_norm("bn1", "bn1"),
    Row("layer{s}.{b}.conv{c}.weight", "params/layer{s}/{b}/conv{c}/kernel", "conv"),
    *batch_norm("layer{s}.{b}.bn{c}", "layer{s}/{b}/bn{c}"),
    Row("layer{s}.{b}.downsample.0.weight", "params/layer{s}/{b}/downsample/conv/kernel", "conv"),
    *batch_norm("layer{s}.{b}.downsample.1", "layer{s}/{b}/downsample/bn"),
    *linear("head.2", "head/linear"),
    *noah_head(),
)

RENAMES = tuple(renamed("fc", "head.2"))  # torchvision, timm


def is_kind(shapes: Shapes, architecture: Architecture) -> bool:
    """Returns whether a state dict has an architecture's kind of blocks, basic or bottleneck."""
    block = Bottleneck if "layer1.0.conv3.weight" in shapes else BasicBlock
    return architecture.build.keywords["block"] is block


def infer_dimensions(shapes: Shapes) -> dict[str, Any]:
    """Width and depths of a state dict."""
    return {
        "width": shapes.channels("conv1", "bn1"),
        "depths": tuple(shapes.depth(f"layer{stage}.") for stage in (1, 2, 3, 4)),
    }


def infer_arguments(shapes: Shapes) -> dict[str, Any]:
    """Returns the stem of a state dict."""
    if shapes.rank("conv1.weight") != 4:
        return {}
    return {"stem": "small" if shapes.length("conv1.weight", -1) == 3 else "imagenet"}
