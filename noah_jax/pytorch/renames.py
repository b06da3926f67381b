"""What other libraries call the tensors of the same architectures, as data.

Rows go from a foreign key to the original's; the conversion tables take it from there. A state
dict that has the original's names already passes through unchanged.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from noah_jax.models.mobilenetv2 import STAGES
from noah_jax.pytorch.mapping import match

Rename = tuple[str, str, Callable[[np.ndarray], np.ndarray]]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _wide(x: np.ndarray) -> np.ndarray:
    """ResMLP's affines: Facebook's have one dimension, the original's (1, 1, channels)."""
    return x.reshape(1, 1, -1)


def _renamed(foreign: str, ours: str, leaves: tuple[str, ...] = ("weight", "bias")) -> list[Rename]:
    return [(f"{foreign}.{leaf}", f"{ours}.{leaf}", _same) for leaf in leaves]


_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _timm_mobilenetv2() -> Iterator[Rename]:
    """timm counts the blocks per stage, torchvision (and the original) through."""
    yield ("conv_stem.weight", "features.0.0.weight", _same)
    yield from _renamed("bn1", "features.0.1", _NORM)
    index = 1
    for stage, depth in enumerate(depth for _, _, depth, _ in STAGES):
        for block in range(depth):
            theirs, ours = f"blocks.{stage}.{block}", f"features.{index}.conv"
            # The first block does not expand.
            names = ["conv_pw", "conv_dw", "conv_pwl"] if stage else ["conv_dw", "conv_pw"]
            places = [("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")][: len(names) - 1]
            places.append(("2", "3") if stage else ("1", "2"))
            for i, (name, (conv, norm)) in enumerate(zip(names, places, strict=True), start=1):
                yield (f"{theirs}.{name}.weight", f"{ours}.{conv}.weight", _same)
                yield from _renamed(f"{theirs}.bn{i}", f"{ours}.{norm}", _NORM)
            index += 1
    yield ("conv_head.weight", "features.18.0.weight", _same)
    yield from _renamed("bn2", "features.18.1", _NORM)
    yield from _renamed("classifier", "head.2")


RENAMES: dict[str, list[Rename]] = {
    "resnet": _renamed("fc", "head.2"),  # torchvision, timm
    "mobilenetv2": [*_renamed("classifier.1", "head.2"), *_timm_mobilenetv2()],
    "mobilenetv3": [],
    "shufflenetv2": _renamed("fc", "head.2"),
    "deit": [],
    "pvt": [],
    "mlp": [  # Facebook's ResMLP
        *_renamed("patch_embed.proj", "stem.proj"),
        *_renamed("blocks.{b}.attn", "blocks.{b}.linear_tokens"),
        *_renamed("blocks.{b}.mlp.fc1", "blocks.{b}.mlp_channels.fc1"),
        *_renamed("blocks.{b}.mlp.fc2", "blocks.{b}.mlp_channels.fc2"),
        ("blocks.{b}.gamma_1", "blocks.{b}.ls1", _same),
        ("blocks.{b}.gamma_2", "blocks.{b}.ls2", _same),
        *(
            (f"{norm}.{leaf}", f"{norm}.{leaf}", _wide)
            for norm in ("norm", "blocks.{b}.norm1", "blocks.{b}.norm2")
            for leaf in ("alpha", "beta")
        ),
    ],
}


def rename(state_dict: Mapping[str, np.ndarray], family: str) -> dict[str, np.ndarray]:
    """A state dict by the original's names; keys that no row knows stay as they are.

    Where two keys would become one, the foreign one stays: it is reported as surplus.
    """
    out: dict[str, np.ndarray] = {}
    for key, value in state_dict.items():
        name, array = key, value
        for foreign, ours, transform in RENAMES[family]:
            if (fields := match(foreign, key)) is not None:
                target = ours.format(**fields)
                if target == key or target not in state_dict:
                    name, array = target, transform(value)
                break
        out[name] = array
    return out
