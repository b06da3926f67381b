"""What the heads have in common that pool positions by a softmax: they can show it."""

import jax
import jax.numpy as jnp
from flax import nnx

from noah_jax.heads.evidence import check_classes
from noah_jax.heads.positional import PositionalHead
from noah_jax.nn.mesh_axes import on_auto_axes


class AttentiveHead(PositionalHead):
    """A head that sums positions with weights from a softmax over all of them.

    A subclass computes the softmax in `weights`. Where classes have queries of their own, it says
    in `query_of` which one looks for a class.
    """

    def attention(self, features: jax.Array, classes: jax.Array) -> jax.Array:
        """Computes where the head looks for chosen classes.

        Args:
          features: `[batch, *spatial, in_features]`.
          classes: Class indices, `[m]` for the same classes in every image or `[batch, m]`.

        Returns:
          float32 `[batch, heads, m, *spatial]`, which sums to one over the spatial dimensions.

        Raises:
          InputError: If the features do not fit, or a class does not exist.
        """
        self.check_features(features)
        classes = check_classes(classes, self.num_classes, features)
        graphdef, state = nnx.split(self)

        def compute(features: jax.Array, state: nnx.State, classes: jax.Array) -> jax.Array:
            head = nnx.merge(graphdef, state)
            weights = head.weights(head.positions(features))
            chosen = jnp.broadcast_to(head.query_of(classes), (len(features), classes.shape[-1]))
            maps = jnp.take_along_axis(weights, chosen[:, None, :, None], axis=2)
            return maps.reshape(*maps.shape[:3], *features.shape[1:-1])

        return on_auto_axes(compute, features, state, classes)

    def weights(self, positions: jax.Array) -> jax.Array:
        """Computes the softmax, float32 `[batch, heads, queries, positions]`, without dropout.

        Args:
          positions: `[batch, positions, in_features]` in the compute dtype.
        """
        raise NotImplementedError

    def query_of(self, classes: jax.Array) -> jax.Array:
        """Returns which query looks for each class; here the first looks for all."""
        return jnp.zeros_like(classes)
