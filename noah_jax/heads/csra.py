"""The CSRA head: class-specific residual attention.

Zhu, Wu: "Residual Attention: A Simple but Effective Method for Multi-Label Recognition"
(arXiv:2108.02456), and its published code, https://github.com/Kevinz-code/CSRA.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.evidence import Contributions, check_classes
from noah_jax.heads.positional import PositionalHead
from noah_jax.heads.spec import HeadSpec
from noah_jax.nn.arguments import check_count, check_number
from noah_jax.nn.dropout import Key
from noah_jax.nn.dtypes import wide_einsum
from noah_jax.nn.mesh_axes import on_auto_axes

CSRA_OPTIONS = {"num_heads": 1, "lam": 0.1}

_MAX = 99  # The published code's temperature that stands for the maximum.
# The published temperatures of the softmax, by the number of heads.
TEMPERATURES = {
    1: (1,),
    2: (1, _MAX),
    4: (1, 2, 4, _MAX),
    6: (1, 2, 3, 4, 5, _MAX),
    8: (1, 2, 3, 4, 5, 6, 7, _MAX),
}


class CSRAHead(PositionalHead):
    """Mean pooling of class scores, and a share of their pooling by an attention of each class.

        score[b, h, k, l] = features[b, l, :] . kernel[h, :, k] / |kernel[h, :, k]|
        logits[b, k] = sum_h mean_l score + lam * sum_l softmax_l(T_h * score) * score

    There is no bias. Every head has a kernel and a temperature T of its own; T = 99 takes the
    maximum over the positions in place of the softmax. The heads' temperatures are

    | num_heads | T |
    |---|---|
    | 1 | 1 |
    | 2 | 1, 99 |
    | 4 | 1, 2, 4, 99 |
    | 6 | 1 to 5, 99 |
    | 8 | 1 to 7, 99 |

    Args:
      in_features: Channels of the feature map.
      num_classes: Number of classes.
      num_heads: Number of heads: 1, 2, 4, 6 or 8.
      lam: Weight of the attention's logit, at least 0.
      dropout: Dropout rate on the features while training; the published head has none.
      dtype: Compute dtype of the scores' products; everything after them is float32.
      rngs: Source of the initial weights, uniform in +-1/sqrt(in_features) as PyTorch's default.

    Raises:
      InputError: If an argument does not fit.
    """

    has_own_init = True

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        num_heads: int = 1,
        lam: float = 0.1,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, num_classes, dropout=dropout, dtype=dtype)
        num_heads = check_count("num_heads", num_heads)
        if num_heads not in TEMPERATURES:
            known = ", ".join(map(str, TEMPERATURES))
            raise InputError(f"num_heads of a csra head must be one of {known}, got {num_heads}")
        if not 0 <= check_number("lam", lam) < math.inf:
            raise InputError(f"lam must be at least 0, got {lam}")
        self.temperatures = TEMPERATURES[num_heads]
        self.lam = lam
        shape = (num_heads, self.in_features, self.num_classes)
        self.classifier = _Classifiers(shape, rngs)

    def logits(self, positions: jax.Array, key: Key | None) -> jax.Array:
        """See `PositionalHead.logits`."""
        scores = self._scores(self.dropout(positions, key))
        mean = scores.mean(-1).sum(1)
        attended = [
            scores[:, h].max(-1)
            if temperature == _MAX
            else (_attention(scores[:, h], temperature) * scores[:, h]).sum(-1)
            for h, temperature in enumerate(self.temperatures)
        ]
        return mean + self.lam * sum(attended)

    def attention(self, features: jax.Array, classes: jax.Array) -> jax.Array:
        """Computes where the head looks for chosen classes.

        Args:
          features: `[batch, *spatial, in_features]`.
          classes: Class indices, `[m]` for the same classes in every image or `[batch, m]`.

        Returns:
          float32 `[batch, num_heads, m, *spatial]`, which sums to one over the spatial dimensions.

        Raises:
          InputError: If the features do not fit, or a class does not exist.
        """
        return self.contributions(features, classes).attention

    def contributions(self, features: jax.Array, classes: jax.Array) -> Contributions:
        """Computes what each position adds to the logits of chosen classes.

        A position adds its score times `1 / positions + lam * attention`.

        Args:
          features: `[batch, *spatial, in_features]`.
          classes: Class indices, `[m]` for the same classes in every image or `[batch, m]`.

        Returns:
          `(attention, contributions, bias)`, a named tuple of float32 arrays. Two are
          `[batch, num_heads, m, *spatial]` and the bias `[batch, num_heads, m]`, which is 0.

        Raises:
          InputError: If the features do not fit, or a class does not exist.
        """
        self.check_features(features)
        classes = check_classes(classes, self.num_classes, features)
        graphdef, state = nnx.split(self)

        def compute(features: jax.Array, state: nnx.State, classes: jax.Array) -> Contributions:
            head = nnx.merge(graphdef, state)
            scores = head._scores(head.positions(features), classes)
            parts = [_attention(scores[:, h], t) for h, t in enumerate(head.temperatures)]
            weights = jnp.stack(parts, 1)
            added = scores * (1 / scores.shape[-1] + head.lam * weights)
            shape = *scores.shape[:3], *features.shape[1:-1]
            bias = jnp.zeros_like(scores, shape=scores.shape[:3])
            return Contributions(weights.reshape(shape), added.reshape(shape), bias)

        return on_auto_axes(compute, features, state, classes)

    def _scores(self, positions: jax.Array, classes: jax.Array | None = None) -> jax.Array:
        """Returns the scores of all or of chosen classes, `[batch, num_heads, m, positions]`."""
        kernel = self.classifier.kernel[...]
        kernel = kernel / jnp.linalg.norm(kernel, axis=1, keepdims=True)
        if classes is None:
            return wide_einsum("bld,ndk->bnkl", positions, kernel)
        chosen = "ndk" if classes.ndim == 1 else "ndbk"
        return wide_einsum(f"bld,{chosen}->bnkl", positions, kernel[..., classes])


class _Classifiers(nnx.Module):
    """Owns the kernel of all heads, `[num_heads, in_features, num_classes]`."""

    def __init__(self, shape: tuple[int, int, int], rngs: nnx.Rngs):
        bound = 1 / math.sqrt(shape[1])
        self.kernel = nnx.Param(
            jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
        )


def _attention(scores: jax.Array, temperature: int) -> jax.Array:
    """Returns one head's attention over the last axis of `[batch, classes, positions]`."""
    if temperature == _MAX:
        return jax.nn.one_hot(scores.argmax(-1), scores.shape[-1], dtype=scores.dtype)
    return jax.nn.softmax(temperature * scores, axis=-1)


def count_csra_params(spec: HeadSpec, in_features: int) -> int:
    """Counts the parameters of a CSRA head: D K for each of its heads, and no bias."""
    return spec.options["num_heads"] * in_features * spec.num_classes
