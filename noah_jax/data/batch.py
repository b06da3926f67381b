"""The one description of a batch of images, on the host and on the devices."""

from typing import NotRequired, TypedDict

import jax
import numpy as np


class Batch(TypedDict):
    """A batch of images and labels: NumPy arrays on the host, JAX arrays on the devices.

    Attributes:
      image: uint8 `[batch, height, width, 3]`, RGB.
      label: int32 class indices, `[batch]`; for images with several labels `[batch, num_classes]`
        of 1 (present), 0 (absent) and -1 (ignored).
      draws: float32 `[batch, rows, columns]`, in training with `data.augment_on_device` or
        `data.loader=dali` only: the operations that the device applies to each image, see
        `noah_jax.data.device_draws`.
      mask: bool `[batch]`, in evaluation only: false where a row is padding, not an image.
    """

    image: np.ndarray | jax.Array
    label: np.ndarray | jax.Array
    draws: NotRequired[np.ndarray | jax.Array]
    mask: NotRequired[np.ndarray | jax.Array]
