"""The forward pass on a batch's uint8 images, as a part of larger compiled steps."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from noah_jax.models.base import Model, Tree


def traced_on(mesh: Mesh | None, step: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a step so that it is traced with the mesh as JAX's abstract mesh.

    Layers that run per device, such as kernels, then know how the batch is split.
    """
    if mesh is None:
        return step

    @functools.wraps(step)
    def on_mesh(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(*arguments)

    return on_mesh


def make_predict_step(
    model: Model,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh | None = None,
) -> Callable[[Tree, Tree, jax.Array], jax.Array]:
    """Makes `(params, stats, images) -> logits` for evaluation, to be jitted by the caller.

    Where nothing else belongs into the compiled program, call `Model.predict` instead.

    Args:
      model: The model.
      mean: Mean of each channel of the uint8 images, for pixels in 0..1.
      std: Standard deviation of each channel, likewise.
      mesh: Devices over which the batch is split; `None` for one device.

    Returns:
      A pure function of the weights and of uint8 images `[batch, height, width, 3]`, which it
      normalises; it gives float32 logits `[batch, num_classes]`.
    """

    def predict_step(params: Tree, stats: Tree, images: jax.Array) -> jax.Array:
        return model.logits(params, stats, images, mean=mean, std=std)

    return traced_on(mesh, predict_step)


def make_encode_step(
    model: Model,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh | None = None,
) -> Callable[[Tree, Tree, jax.Array], tuple[jax.Array, jax.Array | None]]:
    """Makes `(params, stats, images) -> (map, class token)`, see `make_predict_step`."""

    def encode_step(
        params: Tree, stats: Tree, images: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        return model.encode(params, stats, images, mean=mean, std=std)

    return traced_on(mesh, encode_step)
