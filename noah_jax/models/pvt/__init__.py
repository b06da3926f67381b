"""PVT: the family's record."""

import functools

from noah_jax.models.family import Architecture, Family
from noah_jax.models.pvt import pytorch
from noah_jax.models.pvt.modeling import PVT
from noah_jax.models.shapes import class_token_argument

Stages = tuple[int, int, int, int]


def _architecture(widths: Stages, depths: Stages, num_heads: Stages = (1, 2, 5, 8)) -> Architecture:
    return Architecture(
        build=functools.partial(
            PVT,
            widths=widths,
            depths=depths,
            num_heads=num_heads,
            mlp_ratios=(8.0, 8.0, 4.0, 4.0),
            reductions=(8, 4, 2, 1),
        ),
        head_num=4,
        key_ratio=1 / 2,
        interpolation="bicubic",
        no_decay=("cls_token",),
    )


_WIDTHS = (64, 128, 320, 512)

FAMILY = Family(
    name="pvt",
    architectures={
        "pvt_tiny_050": _architecture((32, 64, 160, 256), (2, 2, 2, 2)),
        "pvt_tiny_075": _architecture((48, 96, 240, 384), (2, 2, 2, 2)),
        "pvt_tiny": _architecture(_WIDTHS, (2, 2, 2, 2)),
        "pvt_small": _architecture(_WIDTHS, (3, 4, 6, 3)),
        "pvt_medium": _architecture(_WIDTHS, (3, 4, 18, 3)),
        "pvt_large": _architecture(_WIDTHS, (3, 8, 27, 3)),
        "pvt_huge_v2": _architecture((128, 256, 512, 768), (3, 10, 60, 3), (2, 4, 8, 12)),
    },
    table=pytorch.TABLE,
    layers=tuple(
        pattern
        for stage in (1, 2, 3, 4)
        for pattern in (
            rf"(?:patch|pos)_embed{stage}" + ("|cls_token" if stage == 4 else ""),
            rf"block{stage}/(\d+)/",
        )
    ),
    positions=pytorch.POSITIONS,
    infer_dimensions=pytorch.infer_dimensions,
    infer_arguments=class_token_argument,
    likely_num_heads=pytorch.likely_num_heads,
)
