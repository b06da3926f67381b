"""Says which models timm has too, and by which names it keeps their weights."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from noah_jax.models import get_architecture, get_family
from noah_jax.models.base import Model
from noah_jax.models.conversion import Rename, renamed
from noah_jax.models.mobilenetv2.pytorch import TIMM as MOBILENETV2
from noah_jax.pytorch.head import head_keys
from noah_jax.pytorch.mapping import match

# timm's names of the layers, in the families that it has. Where there is none, they are the
# original's, which is made of timm.
_RENAMES: Mapping[str, tuple[Rename, ...]] = {
    "resnet": tuple(renamed("fc", "head.2")),
    "mobilenetv2": MOBILENETV2,
    "deit": (),
    "dinov2": (),
    "mlp": (),
}
_FIRST_CONV = {
    "resnet": "conv1",
    "mobilenetv2": "features.0.0",
    "mobilenetv3": "features.0.0",
    "shufflenetv2": "conv1.0",
    "deit": "patch_embed.proj",
    "dinov2": "patch_embed.proj",
    "pvt": "patch_embed1.proj",
    "mlp": "stem.proj",
}
_POOLS = {"resnet": "avg", "mobilenetv2": "avg", "deit": "token", "dinov2": "token", "mlp": "avg"}
# timm's arguments by the ones here; timm's MLP models let none of theirs be changed.
_ARGUMENTS = {
    "resnet": {"depths": "layers"},
    "deit": {
        **{"width": "embed_dim", "depth": "depth", "num_heads": "num_heads"},
        **{"patch_size": "patch_size", "mlp_ratio": "mlp_ratio"},
    },
}
_ARGUMENTS["dinov2"] = {**_ARGUMENTS["deit"], "registers": "reg_tokens"}
_OF_IMAGE_SIZE = ("deit", "dinov2", "mlp")  # families that are made for a size of images
# What a name here says more than timm's: the scaled widths, and weights that were published.
_SUFFIX = re.compile(r"_(050|075|distilled|in21k|miil|miil_in21k|in22ft1k)(?=_224|_patch|\Z)")


@dataclasses.dataclass(frozen=True)
class TimmLayout:
    """How timm makes a model, and what it calls its tensors.

    Attributes:
      architecture: timm's name of the architecture.
      model_args: The arguments of `timm.create_model` that differ from the architecture's own.
      renames: timm's keys where they differ from the original's.
      global_pool: How timm's model pools its features.
    """

    architecture: str
    model_args: Mapping[str, Any]
    renames: tuple[Rename, ...]
    global_pool: str

    def key(self, original: str) -> str:
        """Returns timm's name of a tensor, of a layer's too, that the original calls so."""
        for row in self.renames:
            if (fields := match(row.original, original)) is not None:
                return row.foreign.format(**fields)
        return original


def timm_layout(model: Model) -> TimmLayout | None:
    """Returns how timm makes a model; `None` if timm has no such model.

    Args:
      model: A model with any head. timm has only those with a linear one.
    """
    arguments, family = model.arguments, get_family(model.name).name
    if family not in _RENAMES or arguments["head"] != "linear":
        return None
    params = model.abstract()[0]
    if arguments.get("stem", "imagenet") != "imagenet" or "pre_logits" in params:
        return None
    if _POOLS[family] == "token" and "cls_token" not in params:
        return None
    name = model.name.removeprefix("noah_")
    base = _SUFFIX.sub("", name) if family in _OF_IMAGE_SIZE else name
    published = get_architecture(base)
    names = _ARGUMENTS.get(family, {})
    args: dict[str, Any] = {}
    for key, value in published.dimensions.items():
        if arguments[key] != value:
            if key not in names:
                return None
            changed = arguments[key]
            args[names[key]] = list(changed) if isinstance(changed, tuple) else changed
    if family in _OF_IMAGE_SIZE and model.image_size != published.image_size:
        height, width = model.image_size
        args["img_size"] = height if height == width else [height, width]
    return TimmLayout(base, args, _RENAMES[family], _POOLS[family])


def layer_names(model: Model, layout: TimmLayout | None) -> dict[str, Any]:
    """Returns `first_conv` and `classifier` as timm's `pretrained_cfg` has them.

    Args:
      model: The model.
      layout: timm's layout, if its weights are written so.
    """
    family = get_family(model.name)
    linear, query = (key.removesuffix(".weight") for key in head_keys(family))
    classifier: Any = "head"
    if model.arguments["head"] == "linear":
        classifier = linear
    elif model.arguments["head"] == "noah":
        head = query.removesuffix(".query")
        parts = model.abstract()[0]["head"]
        classifier = [f"{head}.{part}" for part in ("query", "value") if part in parts]
    names = {"first_conv": _FIRST_CONV[family.name], "classifier": classifier}
    if layout is None:
        return names
    return {key: layout.key(f"{x}.weight").removesuffix(".weight") for key, x in names.items()}
