"""What a backbone knows of its head before it builds one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """The choice of a head, made before the backbone says how many channels its map has.

    A head takes from here what it needs; `noah_jax.heads.registry.make_head` builds it.

    Attributes:
      kind: A name in `noah_jax.heads.registry.HEADS`, or a module that is called as
        `head(features, train=..., key=...)` on `[batch, *spatial, channels]`.
      num_classes: Number of classes.
      head_num: NOAH's N, the number of blocks.
      key_ratio: NOAH's r, the fraction of the channels that feeds the query.
      head_split: See `NOAH`.
      kv_split: See `NOAH`.
      drop_rate: Dropout rate inside the head while training.
      dtype: Compute dtype; the logits are float32.
      options: The options of this kind of head by name, all of them; see
        `noah_jax.heads.registry.HeadKind`.
      features_only: Whether the head is left out. `kind` still decides whether the backbone
        has what a linear head needs, such as a class token.
      spatial_major: See `noah_jax.poca`.
    """

    kind: str | nnx.Module
    num_classes: int
    head_num: int
    key_ratio: float
    head_split: bool = True
    kv_split: bool = True
    drop_rate: float = 0.0
    dtype: Any = jnp.float32
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    features_only: bool = False
    spatial_major: bool = False


class HeadInit(NamedTuple):
    """The initialisers a family of backbones gives one kind of head.

    Attributes:
      kernel: Initialiser of the kernels; `None` takes the head's own.
      bias: Initialiser of the bias, for heads that let it be chosen.
    """

    kernel: nnx.Initializer | None = None
    bias: nnx.Initializer = nnx.initializers.zeros
