"""ShuffleNetV2: the family's record."""

import functools

from noah_jax.models.family import Architecture, Family
from noah_jax.models.shufflenetv2 import pytorch
from noah_jax.models.shufflenetv2.modeling import ShuffleNetV2


def _architecture(widths: tuple[int, int, int, int]) -> Architecture:
    return Architecture(
        build=functools.partial(ShuffleNetV2, widths=widths, depths=(4, 8, 4)),
        head_num=8,
        key_ratio=1 / 4,
        spatial_major=True,
    )


FAMILY = Family(
    name="shufflenetv2",
    architectures={
        "shufflenetv2_050": _architecture((48, 96, 192, 1024)),
        "shufflenetv2_100": _architecture((116, 232, 464, 1024)),
        "shufflenetv2_150": _architecture((176, 352, 704, 1024)),
        "shufflenetv2_200": _architecture((244, 488, 976, 2048)),
    },
    table=pytorch.TABLE,
    layers=(r"conv1/", r"stage(\d+)/(\d+)/", r"conv5/"),
    renames=pytorch.RENAMES,
    infer_dimensions=pytorch.infer_dimensions,
)
