"""Names the settings that would spare the host's cores work on training images.

`docs/guides/input.md` says what each of them saves and changes.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

SMALL_SIDE = 400  # pixels; the side of a set of smaller images for crops of 224
SMALLER_SET = f"a set of `noah-jax prepare --max-side {SMALL_SIDE}`"


@dataclasses.dataclass(frozen=True)
class Lighter:
    """A setting that spares the cores work.

    Attributes:
      name: What a user sets, such as "data.augment_on_device=True".
      values: Keys of the section `data` and their values.
    """

    name: str
    values: dict[str, Any]


def lighter_settings(section: ConfigDict) -> list[Lighter]:
    """Returns the settings that would help and are not in force, in the order in which to try them.

    Args:
      section: The section `data`.
    """
    if section.loader != "host":
        return []
    wanted = {
        "augment_on_device": bool(section.rand_augment.num_ops or section.color_jitter),
        "approximate_decode": section.crop == "random_resized" and not section.cache,
    }
    return [
        Lighter(f"data.{key}=True", {key: True})
        for key, helps in wanted.items()
        if helps and not section[key]
    ]
