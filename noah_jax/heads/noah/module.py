"""NOAH, the Flax module of the head: it owns the weights; `poca.py` computes the logits."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.evidence import Contributions
from noah_jax.heads.noah.ablations import (
    ATTENTIONS,
    MERGES,
    merge_contributions,
    merged_logits,
    uniform_logits,
)
from noah_jax.heads.noah.operands import (
    ChannelSplit,
    Projection,
    split_channels,
)
from noah_jax.heads.noah.poca import poca
from noah_jax.heads.noah.reference import attention, uniform_attention, weighted_values
from noah_jax.heads.spec import HeadInit, HeadSpec
from noah_jax.nn.arguments import check_count, check_flag, check_number, check_rate
from noah_jax.nn.dropout import check_key

# The options of the head beside N, r and its two switches, as the paper has them.
NOAH_OPTIONS = {"attention": "softmax", "merge": "sum"}


class NOAH(nnx.Module):
    """The NOAH head (Non-glObal Attentive Head), in place of global pooling and a linear layer.

    For every block `n` of `head_num` and every class `c`, one part of the channels (the query)
    gives a softmax attention over the positions `l` of the feature map, and the other part (the
    value) gives the evidence that is weighed by it:

        logits[b, c] = sum_n sum_l softmax_l(query[b, n, c, :])[l] * value[b, n, c, l]

    Query and value come from the channels by 1x1 convolutions, grouped by block with
    `head_split`. See "NOAH: Learning Pairwise Object Category Attentions for Image
    Classification" (arXiv:2402.02377). Both kernels start kaiming normal (fan-out) and the
    biases at zero, as in the original.

    The module maps `[batch, *spatial, in_features]` to float32 `[batch, num_classes]`:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from noah_jax import NOAH
    >>> head = NOAH(16, num_classes=5, head_num=2, key_ratio=0.25, rngs=nnx.Rngs(params=0))
    >>> features = jnp.ones((3, 7, 7, 16))
    >>> head(features, train=False).shape
    (3, 5)
    >>> head.attention(features, jnp.array([4, 0])).shape  # where it looks for two classes
    (3, 2, 2, 7, 7)

    The weights of a PyTorch NOAH head are taken over by their names:

    >>> import numpy as np
    >>> state_dict = {  # {key: x.numpy() for key, x in torch_head.state_dict().items()}
    ...     "query.weight": np.ones((10, 2, 1, 1)),
    ...     "query.bias": np.zeros(10),
    ...     "value.weight": np.ones((10, 6, 1, 1)),
    ...     "value.bias": np.zeros(10),
    ... }
    >>> head.load_torch(state_dict)
    >>> head.query.kernel.shape
    (2, 2, 5)

    Args:
      in_features: Channels of the feature map.
      num_classes: K, the number of classes.
      head_num: N, the number of blocks.
      key_ratio: r, the fraction of the channels that feeds the query, in (0, 1).
      head_split: Whether each block sees only its own channels, `1/head_num` of the query's and
        of the value's; if not, each sees all of them.
      kv_split: Whether query and value see different channels; if not, both see all.
      dropout: Dropout rate on the values while training, in [0, 1).
      dtype: Dtype of the two projections; the logits are always float32.
      implementation: How the logits are computed; see `noah_jax.poca`.
      spatial_major: Whether the feature map comes from convolutions; see `noah_jax.poca`.
      attention: "softmax", the paper's, or "uniform", which weighs every position the same. Then
        there is no query, and its channels are not used.
      merge: How the blocks' logits are merged: "sum", the paper's, "mean" or "max".
      kernel_init: Initialiser of both kernels, called with the shape
        `[head_num, in_features, num_classes]`; `None` is the original's.
      rngs: Source of the initial weights.

    Raises:
      InputError: If an argument does not fit, naming it and the values that would.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        head_num: int = 4,
        key_ratio: float = 0.5,
        *,
        head_split: bool = True,
        kv_split: bool = True,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        implementation: str = "auto",
        spatial_major: bool = False,
        attention: str = NOAH_OPTIONS["attention"],
        merge: str = NOAH_OPTIONS["merge"],
        kernel_init: nnx.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        in_features = check_count("in_features", in_features)
        num_classes = check_count("num_classes", num_classes, what=" for a head")
        head_num = check_count("head_num", head_num)
        key_ratio = check_number("key_ratio", key_ratio)
        for key, flag in (("head_split", head_split), ("kv_split", kv_split)):
            check_flag(key, flag)
        for key, value, known in (("attention", attention, ATTENTIONS), ("merge", merge, MERGES)):
            if value not in known:
                raise InputError(f"{key} must be {' or '.join(known)}, got {value!r}")
        if attention == "uniform" and implementation != "auto":
            raise InputError(
                "attention='uniform' has one implementation; leave implementation='auto',"
                f" got {implementation!r}"
            )
        check_rate("dropout", dropout)
        split = ChannelSplit(key_ratio, head_split, kv_split)
        parts = split_channels(split, in_features, head_num)
        # PyTorch's fan-out of the convolution, grouped or not, counts all its output channels.
        kernel_init = kernel_init or nnx.initializers.normal(
            math.sqrt(2 / (head_num * num_classes))
        )
        query_in, value_in = (c // head_num if head_split else c for c in parts)
        self.query = (
            _ProjectionWeights(head_num, query_in, num_classes, kernel_init, rngs)
            if attention == "softmax"
            else None
        )
        self.value = _ProjectionWeights(head_num, value_in, num_classes, kernel_init, rngs)
        self.key_ratio = key_ratio
        self.head_split = head_split
        self.kv_split = kv_split
        self.dropout = dropout
        self.dtype = dtype
        self.implementation = implementation
        self.spatial_major = spatial_major
        self.merge = merge

    def __call__(
        self, features: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> jax.Array:
        """Computes the logits.

        Args:
          features: `[batch, *spatial, in_features]`.
          train: Whether dropout applies.
          key: Random key of the dropout, needed to train with dropout.

        Returns:
          float32 logits, `[batch, num_classes]`.

        Raises:
          InputError: If the features do not fit, or the key is missing.
        """
        check_key(key, needed=train and bool(self.dropout))
        features, value = features.astype(self.dtype), self.value.weights()
        dropping: dict[str, Any] = {"dropout": self.dropout, "dropout_key": key if train else None}
        if self.query is None:
            return uniform_logits(features, value, self._split, merge=self.merge, **dropping)
        computing: dict[str, Any] = {
            "implementation": self.implementation,
            "spatial_major": self.spatial_major,
        }
        query = self.query.weights()
        if self.merge == "sum":
            return poca(features, query, value, **dropping, **computing, **self._split._asdict())
        return merged_logits(
            features, query, value, self._split, merge=self.merge, **dropping, **computing
        )

    def load_torch(self, state_dict: Mapping[str, np.ndarray]) -> None:
        """Replaces the weights by those of the original's head in PyTorch.

        Args:
          state_dict: `query.weight` and `value.weight`, `[head_num * num_classes, channels, 1, 1]`
            with the channels of a block, and `query.bias` and `value.bias`,
            `[head_num * num_classes]`, as NumPy arrays; only the value's without the attention.

        Raises:
          InputError: If a key is missing or unknown, or a shape is another one; nothing has
            changed then.
        """
        parts = {"value": self.value} | ({"query": self.query} if self.query is not None else {})
        expected = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
        if differing := sorted(expected ^ state_dict.keys()):
            raise InputError(
                f"the state dict of a NOAH head has the keys {', '.join(sorted(expected))};"
                f" {differing[0]} is {'missing' if differing[0] in expected else 'another one'}"
            )
        arrays = {}
        for part, own in parts.items():
            head_num, channels, num_classes = own.kernel.shape
            shapes = {
                f"{part}.weight": (head_num * num_classes, channels, 1, 1),
                f"{part}.bias": (head_num * num_classes,),
            }
            for key, shape in shapes.items():
                array = np.asarray(state_dict[key], np.float32)
                if array.shape != shape:
                    raise InputError(
                        f"{key} has shape {array.shape}, this head needs {shape}: another"
                        " in_features, num_classes, head_num, key_ratio, head_split or kv_split"
                    )
                arrays[key] = array.reshape(head_num, num_classes, *shape[1:2])
        for part, own in parts.items():
            own.kernel[...] = jnp.asarray(arrays[f"{part}.weight"].swapaxes(1, 2))
            own.bias[...] = jnp.asarray(arrays[f"{part}.bias"])

    def attention(self, features: jax.Array, classes: jax.Array) -> jax.Array:
        """Computes where the head looks for chosen classes.

        Args:
          features: `[batch, *spatial, in_features]`.
          classes: Class indices, `[m]` for the same classes in every image or `[batch, m]`.

        Returns:
          float32 `[batch, head_num, m, *spatial]`, which sums to one over the spatial dimensions.

        Raises:
          InputError: If the features do not fit, or a class does not exist.
        """
        features = features.astype(self.dtype)
        if self.query is None:
            return uniform_attention(features, self.value.weights(), classes)
        return attention(features, self.query.weights(), classes, **self._split._asdict())

    def contributions(self, features: jax.Array, classes: jax.Array) -> Contributions:
        """Computes what each position adds to the logits of chosen classes.

        Summed over blocks and positions, and with the bias of all blocks, the contributions are
        the logits.

        Args:
          features: `[batch, *spatial, in_features]`.
          classes: Class indices, `[m]` for the same classes in every image or `[batch, m]`.

        Returns:
          `(attention, contributions, bias)`, a named tuple of float32 arrays. Two are
          `[batch, head_num, m, *spatial]` and the bias `[batch, head_num, m]`.

        Raises:
          InputError: If the features do not fit, or a class does not exist.
        """
        weights = self.attention(features, classes)
        features = features.astype(self.dtype)
        parts = weighted_values(self._split, features, self.value.weights(), classes, weights)
        return merge_contributions(parts, self.merge)

    @property
    def _split(self) -> ChannelSplit:
        return ChannelSplit(self.key_ratio, self.head_split, self.kv_split)


class _ProjectionWeights(nnx.Module):
    """Owns the kernel and bias of one projection."""

    def __init__(
        self,
        head_num: int,
        in_features: int,
        num_classes: int,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        shape = (head_num, in_features, num_classes)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((head_num, num_classes), jnp.float32))

    def weights(self) -> Projection:
        return Projection(self.kernel[...], self.bias[...])


def count_noah_params(spec: HeadSpec, in_features: int) -> int:
    """Counts the parameters of NOAH: for each block and class, a weight a channel and two biases.

    With `head_split` and `kv_split` on D channels that is D K + 2 N K; without the attention
    there is no query.
    """
    split = ChannelSplit(spec.key_ratio, spec.head_split, spec.kv_split)
    parts = split_channels(split, in_features, spec.head_num)
    blocks = 1 if spec.head_split else spec.head_num
    used = parts if spec.options["attention"] == "softmax" else parts[1:]
    return sum((part * blocks + spec.head_num) * spec.num_classes for part in used)


def make_noah_head(spec: HeadSpec, in_features: int, init: HeadInit, rngs: nnx.Rngs) -> NOAH:
    """Makes the NOAH head of `spec` on a map of `in_features` channels."""
    return NOAH(
        in_features,
        spec.num_classes,
        spec.head_num,
        spec.key_ratio,
        head_split=spec.head_split,
        kv_split=spec.kv_split,
        spatial_major=spec.spatial_major,
        rngs=rngs,
        dropout=spec.drop_rate,
        dtype=spec.dtype,
        kernel_init=init.kernel,
        **spec.options,
    )
