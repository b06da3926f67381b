"""ResNet: the family's record."""

import functools

from noah_jax.models.family import Architecture, Family
from noah_jax.models.resnet import pytorch
from noah_jax.models.resnet.modeling import BasicBlock, Bottleneck, ResNet


def _architecture(
    block: type[BasicBlock] | type[Bottleneck],
    depths: tuple[int, int, int, int],
    key_ratio: float,
) -> Architecture:
    return Architecture(
        build=functools.partial(ResNet, block=block, depths=depths, width=64),
        head_num=4,
        key_ratio=key_ratio,
        spatial_major=True,
        decay_all=True,
    )


FAMILY = Family(
    name="resnet",
    architectures={
        "resnet18": _architecture(BasicBlock, (2, 2, 2, 2), 1 / 2),
        # ResNet34 is not in the paper. Its channels are ResNet18's, and so are its settings.
        "resnet34": _architecture(BasicBlock, (3, 4, 6, 3), 1 / 2),
        "resnet50": _architecture(Bottleneck, (3, 4, 6, 3), 1 / 8),
        "resnet101": _architecture(Bottleneck, (3, 4, 23, 3), 1 / 8),
        "resnet152": _architecture(Bottleneck, (3, 8, 36, 3), 1 / 8),
    },
    table=pytorch.TABLE,
    layers=(r"(?:conv1|bn1)/", r"layer(\d+)/(\d+)/"),
    renames=pytorch.RENAMES,
    is_kind=pytorch.is_kind,
    infer_dimensions=pytorch.infer_dimensions,
    infer_arguments=pytorch.infer_arguments,
)
