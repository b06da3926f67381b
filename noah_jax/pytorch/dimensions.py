"""An architecture's dimensions, from the keys and shapes of its state dict."""

import collections
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from noah_jax.errors import InputError
from noah_jax.models import ARCHITECTURES, mobilenetv2, mobilenetv3
from noah_jax.models.mlp import GluMlp, MixerBlock, ResBlock, SpatialGatingBlock, mlp_layer
from noah_jax.models.resnet import BasicBlock, Bottleneck

StateDict = Mapping[str, np.ndarray]

_STAGES = (1, 2, 3, 4)
# What DeiT's authors made most attention heads of.
_HEAD_WIDTH = 64
# Describing a model takes time for every block, and a file can tell of any number of them.
_DEEPEST, _WIDEST = 200, 2**14


def nearest(
    state_dict: StateDict, family: str, hint: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The architecture of a family that is most like a state dict.

    Args:
      state_dict: arrays by the original's names.
      family: whose keys they are.
      hint: an architecture to prefer where none has the dimensions.

    Returns:
      Its name, and the state dict's dimensions where they are not the architecture's, as
      arguments of `create_model`.
    """
    kind = _told_kind(state_dict, family)
    names = [
        name
        for name, architecture in ARCHITECTURES.items()
        if architecture.family == family and _kind(architecture.build.keywords) == kind
    ]
    told = _told(state_dict, family)
    told = {key: value for key, value in told.items() if _plausible(key, value)}
    name = min(names, key=lambda name: _distance(told, ARCHITECTURES[name].dimensions))
    if hint in names and _differing(told, name):
        name = hint
    return name, _differing(told, name)


def attention_heads(name: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The attention heads of an architecture with other dimensions, which no shape tells.

    DeiT's are 3 up to a width of 192 and one per 64 channels above, PVT's those of the
    architecture; where these do not divide the channels, those of the width nearest to 64.
    """
    architecture = ARCHITECTURES[name]
    if architecture.family == "deit" and "width" in sizes:
        width = sizes["width"]
        return {"num_heads": _heads(width, 3 if width <= 192 else width // _HEAD_WIDTH)}
    if architecture.family == "pvt" and "widths" in sizes:
        published = architecture.dimensions["num_heads"]
        return {"num_heads": tuple(map(_heads, sizes["widths"], published))}
    return {}


def _heads(width: int, preferred: int) -> int:
    if not width % preferred:
        return preferred
    divisors = [n for n in range(1, width + 1) if not width % n]
    return min(divisors, key=lambda n: abs(width / n - _HEAD_WIDTH))


def ratio(whole: int, part: int) -> float:
    """The share of which `int(whole * share)` is `part`."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, math.inf)


def _plausible(key: str, value: Any) -> bool:
    """Whether a model can be made so: a broken file lacks tensors or tells absurd shapes."""
    most = _DEEPEST if key.startswith("depth") else _WIDEST
    return all(0 < x <= most for x in np.ravel(value))


def _differing(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    published = ARCHITECTURES[name].dimensions
    return {key: value for key, value in told.items() if published[key] != value}


def _distance(told: Mapping[str, Any], published: Mapping[str, Any]) -> float:
    """0 where all is equal, else how many times as large or as small the dimensions are."""
    return sum(
        float(np.abs(np.log(np.divide(value, published[key]))).sum()) for key, value in told.items()
    )


def _kind(keywords: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of an architecture is no dimension: the kind of its blocks."""
    block = keywords.get("block")
    bound = getattr(block, "keywords", {})
    return getattr(block, "func", block), bound.get("mlp"), keywords.get("blocks")


def _told_kind(state_dict: StateDict, family: str) -> tuple[Any, ...]:
    """What `_kind` is of the architecture of a state dict."""
    match family:
        case "resnet":
            bottleneck = "layer1.0.conv3.weight" in state_dict
            return (Bottleneck if bottleneck else BasicBlock), None, None
        case "mobilenetv3":
            return None, None, _mobilenetv3_blocks(state_dict)
        case "mlp" if "blocks.0.linear_tokens.weight" in state_dict:
            return ResBlock, None, None
        case "mlp" if "blocks.0.mlp_channels.gate.proj.weight" in state_dict:
            return SpatialGatingBlock, None, None
        case "mlp":
            hidden = _side(state_dict, "blocks.0.mlp_tokens.fc1.weight")
            gated = hidden != _side(state_dict, "blocks.0.mlp_tokens.fc2.weight", 1)
            return MixerBlock, (GluMlp if gated else mlp_layer), None
    return None, None, None


def _mobilenetv3_blocks(state_dict: StateDict) -> tuple[mobilenetv3.Block, ...]:
    count = sum(f"features.{i}.conv.0.weight" in state_dict for i in range(1, 16))
    return mobilenetv3.LARGE if count > len(mobilenetv3.SMALL) else mobilenetv3.SMALL


def _told(state_dict: StateDict, family: str) -> dict[str, Any]:
    """The dimensions of a state dict, by the argument; not positive where the file lacks them."""

    def side(key: str, axis: int = 0) -> int:
        return _side(state_dict, key, axis)

    def rows(*layers: str) -> int:
        """Output channels of layers that have the same: a broken tensor is outvoted."""
        keys = [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
        votes = collections.Counter(length for key in keys if (length := side(key)))
        return max(votes, key=votes.__getitem__, default=0)

    def depth(prefix: str) -> int:
        inside = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        return len({key.split(".")[0] for key in inside})

    def share(layer: str, width: int) -> float:
        return ratio(width, rows(layer)) if width else 0

    match family:
        case "resnet":
            depths = tuple(depth(f"layer{s}.") for s in _STAGES)
            return {"width": rows("conv1", "bn1"), "depths": depths}
        case "mobilenetv2":
            ends = list(itertools.accumulate(depth for _, _, depth, _ in mobilenetv2.STAGES))
            # The first block has no expansion.
            layers = [(f"features.{i}.conv", 2 if i > 1 else 1) for i in ends]
            found = [
                rows("features.0.0", "features.0.1"),
                *(rows(f"{layer}.{i}", f"{layer}.{i + 1}") for layer, i in layers),
                rows("features.18.0", "features.18.1"),
            ]
            return {"width_mult": _width_mult(family, mobilenetv2.channels, found, -2)}
        case "mobilenetv3":
            blocks = _mobilenetv3_blocks(state_dict)
            layers = [f"features.{i}.conv" for i in range(1, len(blocks) + 1)]
            found = [rows(f"{x}.{i}", f"{x}.{i + 1}") for x in layers for i in (0, 7)]
            # One further with a linear head, after the pooling.
            last = rows(f"features.{len(blocks) + 2}", f"features.{len(blocks) + 3}")

            def channels(width_mult: float) -> list[int]:
                scaled = mobilenetv3.scaled(blocks, width_mult)
                inside = [size for block in scaled for size in (block.hidden, block.features)]
                return [*inside, mobilenetv3.last_channels(width_mult)]

            return {"width_mult": _width_mult(family, channels, [*found, last], -3)}
        case "shufflenetv2":
            units = [f"stage{s}.0.branch2" for s in (2, 3, 4)]
            widths = [2 * rows(f"{unit}.5", f"{unit}.6") for unit in units]
            return {
                "widths": (*widths, rows("conv5.0", "conv5.1")),
                "depths": tuple(depth(f"stage{s}.") for s in (2, 3, 4)),
            }
        case "deit":
            width = rows("patch_embed.proj", "norm")
            return {
                "width": width,
                "patch_size": side("patch_embed.proj.weight", -1),
                "depth": depth("blocks."),
                "mlp_ratio": share("blocks.0.mlp.fc1", width),
            }
        case "pvt":
            widths = [rows(f"patch_embed{s}.proj", f"patch_embed{s}.norm") for s in _STAGES]
            hidden = [f"block{s}.0.mlp.fc1" for s in _STAGES]
            return {
                "widths": tuple(widths),
                "depths": tuple(depth(f"block{s}.") for s in _STAGES),
                "mlp_ratios": tuple(map(share, hidden, widths)),
                "reductions": tuple(side(f"block{s}.0.attn.sr.weight", -1) or 1 for s in _STAGES),
            }
        case "mlp":
            width = rows("stem.proj", "norm", "blocks.0.mlp_channels.fc2")
            told = {
                "width": width,
                "patch_size": side("stem.proj.weight", -1),
                "depth": depth("blocks."),
                "channel_ratio": share("blocks.0.mlp_channels.fc1", width),
            }
            if "blocks.0.mlp_tokens.fc1.weight" in state_dict:
                told["token_ratio"] = share("blocks.0.mlp_tokens.fc1", width)
            return told
    raise InputError(f"no family {family!r}")


def _side(state_dict: StateDict, key: str, axis: int = 0) -> int:
    """The length of a tensor along an axis; 0 if there is none."""
    shape = np.shape(state_dict.get(key, np.empty(0)))
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def _width_mult(
    family: str, channels: Callable[[float], list[int]], found: list[int], widest: int
) -> float:
    """A factor that gives such channels: a published one, else the roundest.

    Many factors do, because channels are rounded to multiples of 8.

    Args:
      family: whose published factors come first.
      channels: the channels of a factor.
      found: those of the file.
      widest: which of them says most about the factor.
    """
    for architecture in ARCHITECTURES.values():
        if architecture.family == family:
            published = architecture.dimensions["width_mult"]
            if channels(published) == found:
                return published
    one = channels(1.0)[widest]
    low, high = (found[widest] - 8) / one, (found[widest] + 8) / one
    for scale in (1, 2, 4, 10, 20, 100, 1000, 10000):
        for k in range(max(1, math.ceil(low * scale)), math.floor(high * scale) + 1):
            if channels(k / scale) == found:
                return k / scale
    return found[widest] / one
