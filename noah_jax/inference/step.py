"""The forward pass on uint8 images, for training's evaluation and for trained models."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from noah_jax.models.base import Model


def normalise(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """uint8 images to float32, `(pixel / 255 - mean) / std` per channel."""
    mean = jnp.asarray(mean, jnp.float32) * 255
    std = jnp.asarray(std, jnp.float32) * 255
    return (images.astype(jnp.float32) - mean) / std


def traced_on(mesh: Mesh | None, step: Callable) -> Callable:
    """`step`, which knows the mesh while it is traced."""
    if mesh is None:
        return step

    @functools.wraps(step)
    def on_mesh(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(*arguments)

    return on_mesh


def make_predict_step(
    model: Model,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mesh: Mesh | None = None,
) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """`(params, stats, images) -> logits` of uint8 images, in evaluation mode."""

    def predict_step(params: Any, stats: Any, images: jax.Array) -> jax.Array:
        return model.apply(params, stats, normalise(images, mean, std), train=False)[0]

    return traced_on(mesh, predict_step)
