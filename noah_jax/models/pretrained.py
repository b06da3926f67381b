"""Lists the published weights that fit the architectures here: where they are, and how good.

`pretrained.json` holds timm's and torchvision's, as `scripts/make_pretrained_table.py` finds them.
The checkpoints that NOAH's authors released are in `released.json`.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from noah_jax.errors import InputError, near_matches
from noah_jax.models.published import published
from noah_jax.models.registry import NOAH_PREFIX, get_architecture

_RELEASED_LICENCE = "apache-2.0"  # of the original's repository


@dataclasses.dataclass(frozen=True)
class PretrainedWeights:
    """Published weights of an architecture.

    Attributes:
      name: Registered name of the model.
      source: The name of the checkpoint, as `noah_jax.load_model` takes it.
      licence: Its SPDX identifier; `None` if nobody says.
      num_classes: Number of classes; `None` for a backbone without a head.
      image_size: Side of the images with which `top1` was measured, in pixels.
      crop_pct: Side of the centre crop over the side of the resized image, there.
      top1: Published ImageNet-1k validation accuracy in percent; `None` if there is none.
      arguments: The arguments of `create_model` that differ from the architecture's own.
      preprocessing: What `noah_jax.data.preprocessing.SETTINGS` are for the weights, if neither
        their file nor a `config.json` beside it says so.
    """

    name: str
    source: str
    licence: str | None
    num_classes: int | None
    image_size: int
    crop_pct: float
    top1: float | None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@functools.cache
def pretrained_weights() -> tuple[PretrainedWeights, ...]:
    """Returns all weights that are known; the first ones of a name are those to take by default."""
    text = importlib.resources.files(__package__).joinpath("pretrained.json").read_text()
    rows = [PretrainedWeights(**row) for row in json.loads(text)]
    for name, figures in published().items():
        architecture = get_architecture(name)
        rows.append(
            PretrainedWeights(
                name=name,
                source=f"released://{name}",
                licence=_RELEASED_LICENCE,
                num_classes=architecture.num_classes,
                image_size=architecture.image_size[0],
                crop_pct=architecture.crop_pct,
                top1=figures.top1,
            )
        )
    return tuple(rows)


def default_source(name: str) -> str:
    """Returns the name of the checkpoint that a model has by default.

    Raises:
      InputError: If nobody published weights of a model of this name.
    """
    for row in pretrained_weights():
        if row.name == name and not row.arguments:
            return row.source
    get_architecture(name)  # an unknown name has an error of its own
    bare = name.removeprefix(NOAH_PREFIX)
    names = {row.name for row in pretrained_weights() if not row.arguments}
    advice = (
        f"head='noah' with {bare!r} takes the weights of its backbone"
        if bare in names and bare != name
        else f"the nearest that have are {', '.join(near_matches(name, names, 3))}"
    )
    raise InputError(
        f"nobody published weights of {name} that are known here; {advice}"
        " (noah-jax models --pretrained lists them)"
    )


def preprocessing_of(source: str) -> Mapping[str, Any]:
    """Returns what is known of the preprocessing of a checkpoint that does not say it itself."""
    if not source.startswith("https://"):
        return {}
    return next((row.preprocessing for row in pretrained_weights() if row.source == source), {})
