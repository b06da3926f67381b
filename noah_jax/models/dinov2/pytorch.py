"""DINOv2 in PyTorch: timm's keys, those of its authors and of Hugging Face, and what they tell."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from noah_jax.models.conversion import Rename, Row, conv, layer_norm, linear, noah_head, renamed
from noah_jax.models.family import Architecture, Positions
from noah_jax.models.shapes import Shapes, likely_heads

TABLE = (
    Row("cls_token", "params/cls_token"),
    Row("reg_token", "params/reg_token"),
    Row("pos_embed", "params/pos_embed"),
    Row("mask_token", None),  # of the pretraining
    *conv("patch_embed.proj", "patch_embed/proj"),
    *layer_norm("blocks.{b}.norm{n}", "blocks/{b}/norm{n}"),
    Row("blocks.{b}.ls{n}.gamma", "params/blocks/{b}/ls{n}"),
    *linear("blocks.{b}.{part}.{layer}", "blocks/{b}/{part}/{layer}"),
    *layer_norm("norm", "norm"),
    *linear("head", "head/linear"),
    *noah_head(),
)

_HF, _CHUNK = "encoder.layer.{b}", "blocks.{chunk}.{b}"

RENAMES = (
    # Blocks in chunks, as DINOv2's training saves them.
    *renamed(f"{_CHUNK}.norm{{n}}", "blocks.{b}.norm{n}"),
    *renamed(f"{_CHUNK}.attn.{{layer}}", "blocks.{b}.attn.{layer}"),
    *renamed(f"{_CHUNK}.mlp.{{layer}}", "blocks.{b}.mlp.{layer}"),
    Rename(f"{_CHUNK}.ls{{n}}.gamma", "blocks.{b}.ls{n}.gamma"),
    # Hugging Face's Dinov2Model and Dinov2WithRegistersModel.
    *(
        Rename(f"embeddings.{name}", original)
        for name, original in (
            ("cls_token", "cls_token"),
            ("mask_token", "mask_token"),
            ("register_tokens", "register_tokens"),
            ("position_embeddings", "pos_embed"),
        )
    ),
    *renamed("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    *renamed(f"{_HF}.norm{{n}}", "blocks.{b}.norm{n}"),
    *renamed(f"{_HF}.attention.attention.{{part}}", "blocks.{b}.attn.{part}"),
    *renamed(f"{_HF}.attention.output.dense", "blocks.{b}.attn.proj"),
    *renamed(f"{_HF}.mlp.{{layer}}", "blocks.{b}.mlp.{layer}"),
    Rename(f"{_HF}.layer_scale{{n}}.lambda1", "blocks.{b}.ls{n}.gamma"),
    *renamed("layernorm", "norm"),
)

# With registers the class token has no position.
POSITIONS = Positions(
    (("pos_embed", 1),),
    "patch_embed.proj.weight",
    class_token="cls_token",
    registers="reg_token",
    antialias=True,
)


def regroup(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins Hugging Face's queries, keys and values, and brings registers into timm's layout.

    DINOv2's authors and Hugging Face give the class token a position embedding beside registers
    too. timm adds it to the class token once and for all, and so does this.
    """
    out = dict(state_dict)
    for key in state_dict:
        if key.endswith((".attn.query.weight", ".attn.query.bias")):
            parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in out for part in parts) and _joinable([out[part] for part in parts]):
                joined = np.concatenate([out.pop(part) for part in parts])
                out[key.replace(".query.", ".qkv.")] = joined
    if "register_tokens" in out:
        token, positions = (np.asarray(out.get(key, 0)) for key in ("cls_token", "pos_embed"))
        if positions.ndim == 3 and token.shape == positions[:, :1].shape:
            out["reg_token"] = out.pop("register_tokens")
            out["cls_token"], out["pos_embed"] = token + positions[:, :1], positions[:, 1:]
    return out


def _joinable(arrays: list[np.ndarray]) -> bool:
    return len({(np.ndim(x), np.shape(x)[1:]) for x in arrays}) == 1 and np.ndim(arrays[0]) > 0


def is_kind(shapes: Shapes, architecture: Architecture) -> bool:
    """Returns whether a state dict has layer scale, and registers if the architecture has them."""
    layer_scale = any(f"blocks.0.ls{n}.gamma" in shapes for n in (1, 2))
    return layer_scale and ("reg_token" in shapes) == ("registers" in architecture.dimensions)


def infer_dimensions(shapes: Shapes) -> dict[str, Any]:
    """Returns the sizes of a state dict."""
    width = shapes.channels("patch_embed.proj", "norm")
    registers = {"registers": shapes.length("reg_token", 1)} if "reg_token" in shapes else {}
    return {
        "width": width,
        "patch_size": shapes.length("patch_embed.proj.weight", -1),
        "depth": shapes.depth("blocks."),
        "mlp_ratio": shapes.ratio("blocks.0.mlp.fc1", width),
        **registers,
    }


def likely_num_heads(published: Mapping[str, Any], sizes: Mapping[str, Any]) -> int | None:
    """One head per 64 channels."""
    return likely_heads(sizes["width"], max(sizes["width"] // 64, 1)) if "width" in sizes else None
