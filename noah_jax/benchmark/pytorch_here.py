"""What the benchmarks share of PyTorch, which is imported only where it is measured."""

import functools
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from noah_jax.timing import Call

if TYPE_CHECKING:
    import torch

TORCH_IS_MISSING = (
    "PyTorch is not installed, so there is nothing to compare with; pip install torch"
)


def torch_is_installed() -> bool:
    """Returns whether PyTorch can be imported, without importing it."""
    return importlib.util.find_spec("torch") is not None


def torch_device() -> str | None:
    """Returns PyTorch's name of the kind of device that JAX uses here; `None` if it has none."""
    import torch

    platform = jax.default_backend()
    if platform == "gpu":
        return "cuda" if torch.cuda.is_available() else None
    return "cpu" if platform == "cpu" else None


def torch_call(start: Callable[[], Any], device: str) -> Call:
    """Returns a call that waits for PyTorch's device."""
    import torch

    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    return Call(start, lambda _: synchronize())


def held_bytes(device: str) -> int:
    """Returns the memory that PyTorch's arrays take on a device; 0 on CPUs."""
    import torch

    return torch.cuda.memory_allocated() if device == "cuda" else 0


def peak_bytes(call: Call, device: str, *, before: int | None = None) -> int | None:
    """Runs a call and returns how much memory PyTorch takes for it; `None` where it tells none.

    Args:
      call: The call.
      device: PyTorch's name of the device.
      before: `held_bytes` before whatever else is to count; by default the call alone counts.
    """
    import torch

    if device != "cuda":
        return None
    before = held_bytes(device) if before is None else before
    torch.cuda.reset_peak_memory_stats()
    call.wait(call.start())
    return torch.cuda.max_memory_allocated() - before


def noah_logits(
    features: "torch.Tensor",
    query: tuple["torch.Tensor", "torch.Tensor"],
    value: tuple["torch.Tensor", "torch.Tensor"],
    *,
    head_num: int,
    query_channels: int,
) -> "torch.Tensor":
    """Computes the NOAH head as its definition says: two grouped 1x1 convolutions and a softmax.

    Args:
      features: `[batch, channels, rows, columns]`.
      query: Kernel `[head_num * num_classes, channels of a block, 1, 1]` and bias of the query.
      value: Kernel and bias of the value, likewise.
      head_num: Number of blocks, N in the paper.
      query_channels: How many of the channels make the query.

    Returns:
      Logits, `[batch, num_classes]`.
    """
    import torch

    convolve = functools.partial(torch.nn.functional.conv2d, groups=head_num)
    scores = convolve(features[:, :query_channels], *query).flatten(2).softmax(-1)
    values = convolve(features[:, query_channels:], *value).flatten(2)
    return (scores * values).sum(-1).unflatten(1, (head_num, -1)).sum(1)
