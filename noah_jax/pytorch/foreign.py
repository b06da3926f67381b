"""Names the models that this package does not have by the keys that only they have."""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

StateDict = Mapping[str, np.ndarray]


def _never(state_dict: StateDict) -> bool:
    return False


def _is_dinov2(state_dict: StateDict) -> bool:
    """Says whether a ViT with layer scale is built as DINOv2, though its keys are DeiT-3's too.

    DINOv2 has registers, or a position embedding of the class token. DeiT-3 has neither.
    """
    for key, value in state_dict.items():
        name = key.rpartition(".")[2]
        if name in ("reg_token", "register_tokens"):
            return True
        if name == "pos_embed" and np.ndim(value) == 3:
            tokens = np.shape(value)[1]
            if math.isqrt(tokens) ** 2 != tokens:
                return True
    return False


def _has_layer_scale(state_dict: StateDict) -> bool:
    return any(key.endswith(".layer_scale1.lambda1") for key in state_dict)


class _Kind(NamedTuple):
    """A kind of model that cannot be converted.

    Attributes:
      name: What it is called.
      keys: Regular expressions; each must be found in some key.
      advice: What to convert instead, if anything comes near.
      unless: Says whether a state dict with such keys is a model of this package all the same.
    """

    name: str
    keys: tuple[str, ...]
    advice: str = ""
    unless: Callable[[StateDict], bool] = _never


# The first kind whose keys are all there counts, so special kinds stand before general ones.
_KINDS = (
    _Kind(
        "a distilled DeiT (dist_token, head_dist)",
        (r"(^|\.)dist_token$",),
        "the DeiT models here have no distillation token: take the DeiT without distillation",
    ),
    _Kind("a CaiT", (r"(^|\.)blocks_token_only\.0\.",)),
    _Kind("a BEiT", (r"(^|\.)blocks\.0\.gamma_1$", r"relative_position_bias_table$")),
    _Kind(
        "a DINOv2 with a SwiGLU layer, as ViT-g/14",
        (r"\.mlp\.(w12|weights_in)\.weight$", r"\.(ls1\.gamma|layer_scale1\.lambda1)$"),
        "the DINOv2 models here are ViT-S, ViT-B and ViT-L",
    ),
    _Kind(
        "a DINOv2 with the linear classifier of its authors",
        (r"\.(ls1\.gamma|layer_scale1\.lambda1)$", r"^(linear_head|classifier)\.weight$"),
        "that classifier reads the mean of the patches beside the class token, and the linear head"
        " here the class token: take the backbone's file",
    ),
    _Kind(
        "a DeiT-3 or another ViT with layer scale (ls1, ls2)",
        (r"(^|\.)blocks\.0\.(ls1\.gamma|gamma_1)$", r"(^|\.)blocks\.0\.attn\.qkv\.weight$"),
        "the DeiT models here have no layer scale: take the first DeiT",
        unless=_is_dinov2,
    ),
    _Kind(
        "a PVT v2",
        (r"(block1|stages\.0\.blocks|stages\.0)\.0\.mlp\.dwconv\.",),
        "the PVT models here are PVT v1, pvt_huge_v2 too",
    ),
    _Kind("a Swin Transformer", (r"attn\.relative_position_bias_table$",)),
    _Kind("a ConvNeXt", (r"(stages\.0\.(blocks\.)?0\.gamma|features\.1\.0\.layer_scale)$",)),
    _Kind(
        "timm's MobileNetV3",
        (r"(^|\.)conv_stem\.weight$", r"(^|\.)conv_head\.bias$", r"conv_reduce\.weight$"),
        "its layers differ from those of mobilenetv3_small here, which is the original's",
    ),
    _Kind(
        "timm's EfficientNet",
        (r"(^|\.)conv_stem\.weight$", r"(^|\.)bn2\.weight$", r"conv_reduce\.weight$"),
    ),
    _Kind("a GhostNet", (r"(^|\.)ghost1\.primary_conv\.",)),
    _Kind(
        "torchvision's EfficientNet or MobileNetV3",
        (r"(^|\.)features\.\d+\.(\d+\.)?block\.\d+\.fc1\.weight$",),
    ),
    _Kind("a DenseNet", (r"(^|\.)denseblock1\.denselayer1\.",)),
    _Kind("an Inception", (r"(^|\.)Mixed_5b\.",)),
    _Kind("a RegNet", (r"((^|\.)trunk_output\.block1\.|(^|\.)s1\.b1\.)",)),
    _Kind("an SE-ResNet", (r"(^|\.)layer1\.0\.se\.",)),
    _Kind("torchvision's ViT", (r"(^|\.)encoder\.layers\.encoder_layer_0\.",)),
    _Kind(
        "a ViT or DeiT of Hugging Face's transformers",
        (r"(^|\.)embeddings\.(patch_embeddings|cls_token)", r"(^|\.)encoder\.layer\.0\."),
        "convert the file of the same model that timm or its authors publish",
        unless=_has_layer_scale,
    ),
    _Kind("a CLIP model", (r"(^|\.)visual\.", r"(^|\.)logit_scale$")),
    _Kind("a masked autoencoder", (r"(^|\.)mask_token$", r"(^|\.)decoder_blocks\.0\.")),
    _Kind("a VGG", (r"(^|\.)features\.0\.weight$", r"(^|\.)classifier\.6\.weight$")),
)


def foreign_kind(state_dict: StateDict) -> str | None:
    """Says what kind of model a state dict is, if it is one that this package does not have.

    Args:
      state_dict: Arrays by key.

    Returns:
      A sentence without a full stop; `None` if no such kind is recognised.
    """
    for kind in _KINDS:
        has_keys = all(any(re.search(pattern, key) for key in state_dict) for pattern in kind.keys)
        if has_keys and not kind.unless(state_dict):
            end = kind.advice or "convert one of the models that noah_jax.list_models() lists"
            return f"this is {kind.name}, which this package does not have; {end}"
    return None
