"""The MLP family in PyTorch: the original's keys, Facebook's, and what they tell of a model."""

import functools
from typing import Any

import numpy as np

from noah_jax.models.conversion import (
    Rename,
    Row,
    conv,
    layer_norm,
    linear,
    noah_head,
    renamed,
)
from noah_jax.models.family import Architecture, Positions
from noah_jax.models.mlp.modeling import (
    GluMlp,
    MixerBlock,
    ResBlock,
    SpatialGatingBlock,
    mlp_layer,
)
from noah_jax.models.shapes import Shapes

TABLE = (
    *conv("stem.proj", "stem/proj"),
    # ResMLP, whose affines replace the norms.
    Row("blocks.{b}.ls{n}", "params/blocks/{b}/ls{n}"),
    Row("blocks.{b}.norm{n}.alpha", "params/blocks/{b}/norm{n}/alpha"),
    Row("blocks.{b}.norm{n}.beta", "params/blocks/{b}/norm{n}/beta"),
    Row("norm.alpha", "params/norm/alpha"),
    Row("norm.beta", "params/norm/beta"),
    *linear("blocks.{b}.linear_tokens", "blocks/{b}/linear_tokens"),
    # gMLP.
    *layer_norm("blocks.{b}.norm", "blocks/{b}/norm"),
    *layer_norm("blocks.{b}.mlp_channels.gate.norm", "blocks/{b}/mlp_channels/gate/norm"),
    *linear("blocks.{b}.mlp_channels.gate.proj", "blocks/{b}/mlp_channels/gate/proj"),
    # Mixer and gMixer; the linears of the channels are in all four.
    *layer_norm("blocks.{b}.norm{n}", "blocks/{b}/norm{n}"),
    *linear("blocks.{b}.mlp_{axis}.fc{n}", "blocks/{b}/mlp_{axis}/fc{n}"),
    *layer_norm("norm", "norm"),
    *linear("head", "head/linear"),
    *noah_head(),
)


def _affine(x: np.ndarray) -> np.ndarray:
    """ResMLP's affines: Facebook's have one dimension, the original's (1, 1, channels)."""
    return x.reshape(1, 1, -1)


RENAMES = (  # Facebook's ResMLP
    *renamed("patch_embed.proj", "stem.proj"),
    *renamed("blocks.{b}.attn", "blocks.{b}.linear_tokens"),
    *renamed("blocks.{b}.mlp.fc1", "blocks.{b}.mlp_channels.fc1"),
    *renamed("blocks.{b}.mlp.fc2", "blocks.{b}.mlp_channels.fc2"),
    Rename("blocks.{b}.gamma_1", "blocks.{b}.ls1"),
    Rename("blocks.{b}.gamma_2", "blocks.{b}.ls2"),
    *(
        Rename(f"{norm}.{leaf}", f"{norm}.{leaf}", _affine)
        for norm in ("norm", "blocks.{b}.norm1", "blocks.{b}.norm2")
        for leaf in ("alpha", "beta")
    ),
)

# The layers over the positions, of ResMLP, of Mixer and gMixer, and of gMLP.
POSITIONS = Positions(
    (
        ("blocks.0.linear_tokens.weight", 1),
        ("blocks.0.mlp_tokens.fc1.weight", 1),
        ("blocks.0.mlp_channels.gate.proj.weight", 1),
    ),
    "stem.proj.weight",
)


def is_kind(shapes: Shapes, architecture: Architecture) -> bool:
    """Returns whether a state dict is of the variant that an architecture is: Mixer, gMixer, ..."""
    block = architecture.build.keywords["block"]
    if isinstance(block, functools.partial):
        return (block.func, block.keywords.get("mlp")) == _variant(shapes)
    return (block, None) == _variant(shapes)


def _variant(shapes: Shapes) -> tuple[Any, Any]:
    """Returns the block of a state dict, and its MLP if that is one of the block's arguments."""
    if "blocks.0.linear_tokens.weight" in shapes:
        return ResBlock, None
    if "blocks.0.mlp_channels.gate.proj.weight" in shapes:
        return SpatialGatingBlock, None
    hidden = shapes.length("blocks.0.mlp_tokens.fc1.weight")
    gated = hidden != shapes.length("blocks.0.mlp_tokens.fc2.weight", 1)
    return MixerBlock, GluMlp if gated else mlp_layer


def infer_dimensions(shapes: Shapes) -> dict[str, Any]:
    """Returns the sizes of a state dict."""
    width = shapes.channels("stem.proj", "norm", "blocks.0.mlp_channels.fc2")
    dimensions = {
        "width": width,
        "patch_size": shapes.length("stem.proj.weight", -1),
        "depth": shapes.depth("blocks."),
        "channel_ratio": shapes.ratio("blocks.0.mlp_channels.fc1", width),
    }
    if "blocks.0.mlp_tokens.fc1.weight" in shapes:
        dimensions["token_ratio"] = shapes.ratio("blocks.0.mlp_tokens.fc1", width)
    return dimensions
