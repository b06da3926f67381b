"""MobileNetV2: the family's record."""

import functools

from noah_jax.models.family import Architecture, Family
from noah_jax.models.mobilenetv2 import pytorch
from noah_jax.models.mobilenetv2.modeling import MobileNetV2


def _architecture(width_mult: float) -> Architecture:
    return Architecture(
        build=functools.partial(MobileNetV2, width_mult=width_mult),
        head_num=8,
        key_ratio=1 / 4,
        spatial_major=True,
        decay_all=True,
    )


FAMILY = Family(
    name="mobilenetv2",
    architectures={
        "mobilenetv2_035": _architecture(0.35),
        "mobilenetv2_050": _architecture(0.5),
        "mobilenetv2_075": _architecture(0.75),
        "mobilenetv2_100": _architecture(1.0),
    },
    table=pytorch.TABLE,
    layers=(r"layers/(\d+)/",),
    renames=pytorch.RENAMES,
    infer_dimensions=pytorch.infer_dimensions,
)
