"""Reads the `config.json` beside weights: timm's, and what `export --hub` of this package adds.

timm writes `architecture`, `num_classes`, `pretrained_cfg` (how images are prepared), `model_args`
and sometimes `label_names`. This package's own section `noah_jax` is the `model.json` of the
model's folder: `name`, `arguments`, `preprocessing`, `class_names` and `training`, what evaluation
needs of the training's configuration. timm passes it over.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from noah_jax.errors import ConversionError, ReadError
from noah_jax.pytorch.timm_names import own_name

CONFIG_FILE = "config.json"
OWN_SECTION = "noah_jax"

# timm's arguments that the weights tell as well, or that only change training.
_TOLD = {
    *("img_size", "num_classes", "patch_size", "embed_dim", "depth", "mlp_ratio", "layers"),
    *("pretrained", "pretrained_cfg", "dynamic_img_size", "dynamic_img_pad", "strict_img_size"),
    *("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate"),
    *("patch_drop_rate", "drop_block_rate", "weight_init", "zero_init_last", "init_values"),
    *("reg_tokens", "channel_multiplier", "num_blocks", "mlp_ratios"),
}
# Values that say nothing new. A vision transformer that pools by "avg" has keys of its own.
_USUAL = {"in_chans": (3,), "global_pool": ("avg", "token")}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What is said of weights beside them.

    Attributes:
      architecture: Name of the architecture, as timm calls it; `None` if nobody says.
      pretrained_cfg: timm's description of the weights; empty if there is none.
      model_args: timm's arguments of the model.
      class_names: The classes in the order of the logits, if they have names.
      own: This package's own section, as `model.json` has it; empty if there is none.
    """

    architecture: str | None = None
    pretrained_cfg: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def name(self) -> str | None:
        """Returns the name that the architecture has here; `None` if nobody says.

        Raises:
          ConversionError: If this package does not have it.
        """
        return None if self.architecture is None else own_name(self.architecture)

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of `create_model` that the weights do not tell.

        Raises:
          ConversionError: If the model was made with arguments that nothing here has.
        """
        args = {key: value for key, value in self.model_args.items() if value is not None}
        heads = args.pop("num_heads", None)
        args = {key: x for key, x in args.items() if x not in _USUAL.get(key, ())}
        if unknown := sorted(args.keys() - _TOLD):
            key = unknown[0]
            raise ConversionError(
                f"{CONFIG_FILE} says that {self.architecture} was made with"
                f" {key}={args[key]!r}, which this package does not have"
            )
        return {} if heads is None else {"num_heads": heads}


def read_model_config(path: str | os.PathLike, metadata: Mapping[str, Any]) -> ModelConfig:
    """Finds what is said of weights, in their file or in the `config.json` beside it.

    Args:
      path: The PyTorch file.
      metadata: What the file says, see `noah_jax.pytorch.files.layouts.Weights`.

    Raises:
      ReadError: If the section of this package is there and does not describe a model.
    """
    beside = pathlib.Path(path).parent / CONFIG_FILE
    config: Any = {}
    if beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            config = {}
    config = config if isinstance(config, dict) else {}
    own = _mapping(config, OWN_SECTION)
    if OWN_SECTION in config and not {"name", "arguments"} <= own.keys():
        raise ReadError(
            f"{beside}: the section {OWN_SECTION} does not describe a model by its name and"
            " arguments"
        )
    cfg = _mapping(metadata, "pretrained_cfg") or _mapping(config, "pretrained_cfg")
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not (cfg or "num_classes" in config):
        architecture = None  # some other program's file
    elif not cfg:
        cfg = config  # timm's first files had all in one
    names = config.get("label_names") or cfg.get("label_names")
    return ModelConfig(
        architecture=None if own else architecture,
        pretrained_cfg=cfg,
        model_args=_mapping(config, "model_args"),
        class_names=tuple(map(str, names)) if isinstance(names, list) else None,
        own=own,
    )


def _mapping(config: Any, key: str) -> dict[str, Any]:
    value = config.get(key) if isinstance(config, Mapping) else None
    return value if isinstance(value, dict) else {}
