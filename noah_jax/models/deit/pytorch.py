"""DeiT in PyTorch: the original's keys, and what they tell of a model."""

from collections.abc import Mapping
from typing import Any

from noah_jax.models.conversion import Row, conv, layer_norm, linear, noah_head
from noah_jax.models.deit.modeling import PRE_LOGITS_WIDTH
from noah_jax.models.family import Positions
from noah_jax.models.shapes import Shapes, class_token_argument, likely_heads

TABLE = (
    Row("cls_token", "params/cls_token"),
    Row("pos_embed", "params/pos_embed"),
    *conv("patch_embed.proj", "patch_embed/proj"),
    *layer_norm("blocks.{b}.norm{n}", "blocks/{b}/norm{n}"),
    *linear("blocks.{b}.{part}.{layer}", "blocks/{b}/{part}/{layer}"),
    *layer_norm("norm", "norm"),
    *linear("pre_logits.fc", "pre_logits"),
    *linear("head", "head/linear"),
    *noah_head(),
)

POSITIONS = Positions((("pos_embed", 1),), "patch_embed.proj.weight", class_token="cls_token")


def infer_dimensions(shapes: Shapes) -> dict[str, Any]:
    """Returns the sizes of a state dict."""
    width = shapes.channels("patch_embed.proj", "norm")
    return {
        "width": width,
        "patch_size": shapes.length("patch_embed.proj.weight", -1),
        "depth": shapes.depth("blocks."),
        "mlp_ratio": shapes.ratio("blocks.0.mlp.fc1", width),
    }


def infer_arguments(shapes: Shapes) -> dict[str, Any]:
    """Returns what the shapes tell of the class token and of the layer before the head.

    `pre_logits` is whether there is such a layer, or its channels if these are not 192.
    """
    key = "pre_logits.fc.weight"
    features = shapes.length(key) if shapes.rank(key) == 2 else 0
    usual = features in (0, PRE_LOGITS_WIDTH)
    return {"pre_logits": key in shapes if usual else features, **class_token_argument(shapes)}


def likely_num_heads(published: Mapping[str, Any], sizes: Mapping[str, Any]) -> int | None:
    """3 heads up to a width of 192, and one per 64 channels above."""
    if "width" not in sizes:
        return None
    width = sizes["width"]
    return likely_heads(width, 3 if width <= 192 else width // 64)
