"""Computes golden weights and images, which are pure functions of their names.

The golden vectors of the tests were computed with this rule. NumPy's legacy `RandomState` stream
is frozen, so the values are the same everywhere and no file of weights is needed.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def golden_tensor(key: str, shape: Sequence[int], gain: float = 2.0, salt: str = "") -> np.ndarray:
    """Computes the tensor at a key of a golden PyTorch state dict.

    Args:
      key: Key in the state dict, without `module.`.
      shape: PyTorch's shape (OIHW for convolutions, OI for linear layers).
      gain: Variance gain of the weight matrices.
      salt: Text that changes every value.

    Returns:
      A float32 array of `shape`, or an int64 scalar for `num_batches_tracked`.
    """
    name = key.rpartition(".")[2]
    if name == "num_batches_tracked":
        return np.asarray(100, np.int64)
    noise = _random(salt + key).standard_normal(tuple(shape)).astype(np.float32)
    if name == "running_var":
        return np.exp(0.2 * noise)
    if name in ("running_mean", "bias", "beta"):
        return 0.1 * noise
    if name == "cls_token" or name.startswith("pos_embed"):
        return 0.2 * noise
    if name in ("ls1", "ls2"):
        return 0.5 + 0.1 * noise
    if name == "alpha" or noise.ndim == 1:
        return 1 + 0.1 * noise
    return noise * np.float32(np.sqrt(gain / int(np.prod(shape[1:]))))


def golden_state_dict(
    shapes: Mapping[str, Sequence[int]], gain: float = 2.0, salt: str = ""
) -> dict[str, np.ndarray]:
    """Computes the golden state dict for `{key: shape}`."""
    return {key: golden_tensor(key, shape, gain, salt) for key, shape in shapes.items()}


def golden_images(image_size: int = 224, batch: int = 2, salt: str = "") -> np.ndarray:
    """Computes normalised float32 images `[batch, image_size, image_size, 3]`."""
    random = _random(f"{salt}images{image_size}")
    coarse = random.standard_normal((batch, 3, 8, 8)).astype(np.float32)
    repeat = -(-image_size // 8)
    smooth = coarse.repeat(repeat, axis=2).repeat(repeat, axis=3)
    smooth = smooth[:, :, :image_size, :image_size]
    noise = random.standard_normal(smooth.shape).astype(np.float32)
    return (smooth + 0.5 * noise).transpose(0, 2, 3, 1)


def _random(text: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(text.encode()))
