"""The toy backbone: its record."""

import functools

from noah_jax.models.family import Architecture, Family
from tests.models.toy import pytorch
from tests.models.toy.modeling import Toy


def _architecture(width: int) -> Architecture:
    return Architecture(
        build=functools.partial(Toy, width=width, depth=3),
        head_num=2,
        key_ratio=1 / 4,
        num_classes=5,
        image_size=(32, 32),
        spatial_major=True,
    )


FAMILY = Family(
    name="toy",
    architectures={"toy_small": _architecture(8), "toy_large": _architecture(16)},
    table=pytorch.TABLE,
    renames=pytorch.RENAMES,
    infer_dimensions=pytorch.infer_dimensions,
)
