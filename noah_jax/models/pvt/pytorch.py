"""PVT in PyTorch: the original's keys, and what they tell of a model."""

from collections.abc import Mapping
from typing import Any

from noah_jax.models.conversion import Row, conv, layer_norm, linear, noah_head
from noah_jax.models.family import Positions
from noah_jax.models.shapes import Shapes, likely_heads

TABLE = (
    Row("cls_token", "params/cls_token"),
    Row("pos_embed{s}", "params/pos_embed{s}"),
    *conv("patch_embed{s}.proj", "patch_embed{s}/proj"),
    *layer_norm("patch_embed{s}.norm", "patch_embed{s}/norm"),
    *layer_norm("block{s}.{b}.norm{n}", "block{s}/{b}/norm{n}"),
    *conv("block{s}.{b}.attn.sr", "block{s}/{b}/attn/sr"),
    *layer_norm("block{s}.{b}.attn.norm", "block{s}/{b}/attn/norm"),
    *linear("block{s}.{b}.{part}.{layer}", "block{s}/{b}/{part}/{layer}"),
    *layer_norm("norm", "norm"),
    *linear("head", "head/linear"),
    *noah_head(),
)

# The first stage's embedding: it has no class token, which joins at the last stage.
POSITIONS = Positions((("pos_embed1", 1),), "patch_embed1.proj.weight")

_STAGES = (1, 2, 3, 4)


def infer_dimensions(shapes: Shapes) -> dict[str, Any]:
    """Returns the sizes of a state dict."""
    widths = [shapes.channels(f"patch_embed{s}.proj", f"patch_embed{s}.norm") for s in _STAGES]
    hidden = [f"block{s}.0.mlp.fc1" for s in _STAGES]
    return {
        "widths": tuple(widths),
        "depths": tuple(shapes.depth(f"block{s}.") for s in _STAGES),
        "mlp_ratios": tuple(map(shapes.ratio, hidden, widths)),
        "reductions": tuple(shapes.length(f"block{s}.0.attn.sr.weight", -1) or 1 for s in _STAGES),
    }


def likely_num_heads(
    published: Mapping[str, Any], sizes: Mapping[str, Any]
) -> tuple[int, ...] | None:
    """Returns the architecture's heads, where they divide the channels."""
    if "widths" not in sizes:
        return None
    return tuple(map(likely_heads, sizes["widths"], published["num_heads"]))
