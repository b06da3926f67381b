"""MobileNetV3: the family's record."""

import functools

from noah_jax.models.family import Architecture, Family
from noah_jax.models.mobilenetv3 import pytorch
from noah_jax.models.mobilenetv3.modeling import LARGE, SMALL, Block, MobileNetV3


def _architecture(blocks: tuple[Block, ...]) -> Architecture:
    return Architecture(
        build=functools.partial(MobileNetV3, blocks=blocks, width_mult=1.0),
        head_num=8,
        key_ratio=1 / 4,
        spatial_major=True,
    )


FAMILY = Family(
    name="mobilenetv3",
    architectures={
        "mobilenetv3_small": _architecture(SMALL),
        "mobilenetv3_large": _architecture(LARGE),
    },
    table=pytorch.TABLE,
    layers=(r"layers/(\d+)/",),
    is_kind=pytorch.is_kind,
    infer_dimensions=pytorch.infer_dimensions,
)
