"""The rows that a family's conversion table is made of.

A table pairs every key of a PyTorch state dict with a path in this package's trees. It is data:
`noah_jax.pytorch.mapping` reads it in both directions. The original's names are the PyTorch names;
a family's `Rename`s lead there from the names that other libraries use.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np

# How a tensor's layout changes. "conv": OIHW <-> HWIO; "linear": OI <-> IO; "poca_kernel" and
# "poca_bias": the NOAH head's grouped convolution <-> its blocks.
Transform = Literal["same", "conv", "linear", "poca_kernel", "poca_bias"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table. The same `{field}` on both sides stands for the same text.

    Attributes:
      torch: Key pattern of the PyTorch state dict, such as `layer{s}.{b}.conv{c}.weight`.
      path: Path pattern in this package, `params/...` or `stats/...`; `None` for a key that has
        no meaning here (BatchNorm's batch counter).
      transform: How the layout changes.
    """

    torch: str
    path: str | None
    transform: Transform = "same"


def linear(torch: str, path: str) -> list[Row]:
    """Rows of a linear layer with a bias."""
    return [
        Row(f"{torch}.weight", f"params/{path}/kernel", "linear"),
        Row(f"{torch}.bias", f"params/{path}/bias"),
    ]


def conv(torch: str, path: str) -> list[Row]:
    """Rows of a convolution with a bias."""
    return [
        Row(f"{torch}.weight", f"params/{path}/kernel", "conv"),
        Row(f"{torch}.bias", f"params/{path}/bias"),
    ]


def layer_norm(torch: str, path: str) -> list[Row]:
    """Rows of a LayerNorm."""
    return [
        Row(f"{torch}.weight", f"params/{path}/scale"),
        Row(f"{torch}.bias", f"params/{path}/bias"),
    ]


def batch_norm(torch: str, path: str) -> list[Row]:
    """Rows of a BatchNorm, with its statistics."""
    return [
        Row(f"{torch}.weight", f"params/{path}/scale"),
        Row(f"{torch}.bias", f"params/{path}/bias"),
        Row(f"{torch}.running_mean", f"stats/{path}/mean"),
        Row(f"{torch}.running_var", f"stats/{path}/var"),
        Row(f"{torch}.num_batches_tracked", None),
    ]


def conv_norm(conv: str, norm: str, path: str) -> list[Row]:
    """Rows of a `ConvNorm`, which PyTorch knows as two layers."""
    kernel = Row(f"{conv}.weight", f"params/{path}/conv/kernel", "conv")
    return [kernel, *batch_norm(norm, f"{path}/bn")]


def noah_head(torch: str = "head") -> list[Row]:
    """Rows of the NOAH head, whose PyTorch keys begin with `torch`."""
    rows = []
    for part in ("query", "value"):
        rows.append(Row(f"{torch}.{part}.weight", f"params/head/{part}/kernel", "poca_kernel"))
        rows.append(Row(f"{torch}.{part}.bias", f"params/head/{part}/bias", "poca_bias"))
    return rows


def unchanged(x: np.ndarray) -> np.ndarray:
    """Returns the array itself."""
    return x


@dataclasses.dataclass(frozen=True)
class Rename:
    """A key of another library, and the original's key for the same tensor.

    Attributes:
      foreign: Key pattern of the other library.
      original: Key pattern of the original, with the same `{field}`s.
      transform: Turns the other library's array into the original's.
    """

    foreign: str
    original: str
    transform: Callable[[np.ndarray], np.ndarray] = unchanged


def renamed(
    foreign: str, original: str, leaves: tuple[str, ...] = ("weight", "bias")
) -> list[Rename]:
    """Renames a layer: each of its tensors keeps its own name."""
    return [Rename(f"{foreign}.{leaf}", f"{original}.{leaf}") for leaf in leaves]
