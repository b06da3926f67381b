"""Prepares batches of images for a model: normalises uint8 pixels and checks shapes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from noah_jax.errors import InputError


def normalise(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Converts uint8 images to float32 as `(pixel / 255 - mean) / std`, channel by channel.

    Args:
      images: uint8 `[..., channels]`.
      mean: Mean of each channel, for pixels in 0..1.
      std: Standard deviation of each channel, for pixels in 0..1.
    """
    scaled_mean = jnp.asarray(mean, jnp.float32) * 255
    scaled_std = jnp.asarray(std, jnp.float32) * 255
    return (images.astype(jnp.float32) - scaled_mean) / scaled_std


def check_images(images: jax.Array) -> jax.Array:
    """Returns normalised images.

    Raises:
      InputError: Unless they are floats `[batch, height, width, 3]`.
    """
    check_shape(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images must be normalised floats here, got {images.dtype}; model.predict and"
            " model.logits normalise uint8 pixels themselves, elsewhere compute"
            " (images / 255 - mean) / std with model.mean and model.std"
        )
    return images


def check_shape(images: jax.Array) -> jax.Array:
    """Returns the images, or raises an `InputError` unless they are `[batch, height, width, 3]`."""
    if images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(
            f"images must be [batch, height, width, 3], got shape {tuple(images.shape)}"
        )
    return images
