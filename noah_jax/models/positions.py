"""Resizes learnt position embeddings to another grid of patches, as PyTorch does."""

import numpy as np


def bicubic_weights(old: int, new: int, *, antialias: bool) -> np.ndarray:
    """Returns the weight of each old position along an axis in each new one, `[new, old]`.

    They are those of PyTorch's `interpolate(mode="bicubic", size=new)`.

    Args:
      old: Number of positions.
      new: Number of positions of the result.
      antialias: Whether a smaller result averages over all the positions that it stands for. It
        also changes the filter itself, as in PyTorch.
    """
    return _antialiased_weights(old, new) if antialias else _plain_weights(old, new)


def _plain_weights(old: int, new: int) -> np.ndarray:
    position = (np.arange(new) + 0.5) * old / new - 0.5
    low = np.floor(position).astype(int)
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        # Beyond the border the last position is repeated.
        nearest = (low + offset).clip(0, old - 1)
        # PyTorch's coefficient; jax.image.resize has -0.5.
        np.add.at(weights, (np.arange(new), nearest), _cubic(position - (low + offset), -0.75))
    return weights


def _antialiased_weights(old: int, new: int) -> np.ndarray:
    stretch = max(old / new, 1.0)
    distance = np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * old / new
    # Beyond the border there is nothing: the positions inside share the whole weight.
    weights = _cubic(distance / stretch, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Computes the cubic convolution filter with coefficient `a` (Keys, 1981)."""
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))


def resize_bicubic(
    x: np.ndarray, old: tuple[int, int], new: tuple[int, int], *, antialias: bool = False
) -> np.ndarray:
    """Resizes position embeddings as PyTorch's `interpolate(mode="bicubic")` does.

    PyTorch's `align_corners` is False.

    Args:
      x: Position embeddings `[1, rows * columns, channels]`.
      old: Their `(rows, columns)`.
      new: The `(rows, columns)` of the result, which is float32.
      antialias: PyTorch's argument. DeiT's fine-tuning resizes without, DINOv2 in timm with it.
    """
    rows, columns = (
        bicubic_weights(*sizes, antialias=antialias) for sizes in zip(old, new, strict=True)
    )
    x = np.asarray(x, np.float64).reshape(*old, -1)
    x = np.einsum("ai,bj,ijc->abc", rows, columns, x, optimize=True)
    return x.reshape(1, new[0] * new[1], -1).astype(np.float32)


def fit_positions(
    x: np.ndarray,
    old: tuple[int, int],
    new: tuple[int, int],
    tokens: int,
    *,
    antialias: bool = False,
) -> np.ndarray:
    """Fits position embeddings to another grid and another number of class tokens.

    A new class token's embedding starts at 0, because the fresh token is random itself.

    Args:
      x: Position embeddings `[1, class tokens + rows * columns, channels]`.
      old: Their `(rows, columns)`.
      new: The `(rows, columns)` of the result.
      tokens: Number of tokens of the result, class tokens included.
      antialias: See `resize_bicubic`.
    """
    source_class_tokens = x.shape[1] - old[0] * old[1]
    class_tokens = tokens - new[0] * new[1]
    token, grid = x[:, :source_class_tokens], x[:, source_class_tokens:]
    if class_tokens != source_class_tokens:
        token = np.zeros((1, class_tokens, x.shape[2]), x.dtype)
    if old != new:
        grid = resize_bicubic(grid, old, new, antialias=antialias)
    return np.concatenate([token, grid], axis=1)
