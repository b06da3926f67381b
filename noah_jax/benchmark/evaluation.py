"""Measures how fast models evaluate, beside PyTorch on the same weights and images.

This package runs the jitted forward pass on this process's device. PyTorch runs the original's
forward pass under `inference_mode` on the CPU, with images in its default layout, as the original,
and with channels last. Both compute in float32. They take turns in one process, so that the
machine's noise meets both. Without PyTorch only this package is measured.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from noah_jax.benchmark.pytorch_here import TORCH_IS_MISSING, torch_is_installed
from noah_jax.console import working
from noah_jax.errors import InputError
from noah_jax.models import create_model
from noah_jax.models.base import Model, Tree
from noah_jax.pytorch.reference import example_weights, torch_forward, torch_state

# One member of each family.
MODELS = (
    "noah_resnet18",
    "noah_mobilenetv2_100",
    "noah_mobilenetv3_small",
    "noah_shufflenetv2_100",
    "noah_deit_tiny_patch16_224",
    "noah_pvt_tiny",
    "noah_mixer_s16_224",
    "noah_gmixer_12_224",
    "noah_resmlp_12_224",
    "noah_gmlp_ti16_224",
)
_SECONDS = 0.5  # duration of one measurement
_QUIET = 0.5  # load average that leaves the figures alone; PyTorch suffers more than XLA
_AGREE = 1e-3  # largest difference of two logits, over their standard deviation


def benchmark_eval(
    model: Model, *, batch: int, rounds: int, seconds: float = _SECONDS, torch: bool
) -> dict[str, list[float]]:
    """Returns images a second in every round, by what computes them.

    Args:
      model: Model to evaluate, on random images and weights.
      batch: Images a call.
      rounds: Number of measurements of each.
      seconds: Duration of one measurement, roughly.
      torch: Whether to measure PyTorch too.

    Returns:
      `{"noah_jax": [...]}` and, with `torch`, `"torch"` (the default layout of images) and
      `"torch_channels_last"`.

    Raises:
      InputError: If PyTorch's logits differ; the two would not be comparable.
    """
    params, stats = example_weights(model)
    random = np.random.RandomState(0)
    images = random.standard_normal((batch, *model.image_size, 3)).astype(np.float32)
    calls: dict[str, Callable[[], Any]] = {"noah_jax": _jax_call(model, params, stats, images)}
    if torch:
        calls |= _torch_calls(model, params, stats, images)
    logits = {name: np.asarray(call()) for name, call in calls.items()}  # compiles the calls too
    for name, found in logits.items():
        difference = np.abs(found - logits["noah_jax"]).max() / found.std()
        if not difference <= _AGREE:
            raise InputError(
                f"{model.name}: {name}'s logits differ by {difference:.1e} of their std"
            )
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            speeds[name].append(batch * _calls_a_second(call, seconds))
    return speeds


def _jax_call(
    model: Model, params: Tree, stats: Tree, images: np.ndarray
) -> Callable[[], jax.Array]:
    arguments = jax.device_put((params, stats, images))
    return lambda: model.predict(*arguments).block_until_ready()


def _torch_calls(
    model: Model, params: Tree, stats: Tree, images: np.ndarray
) -> dict[str, Callable[[], Any]]:
    import torch

    state = torch_state(model, params, stats)
    channels_last = {
        key: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for key, tensor in state.items()
    }
    forward = torch_forward(model)
    nhwc = torch.from_numpy(images).permute(0, 3, 1, 2)

    def call(state: Any, images: Any) -> Callable[[], Any]:
        def evaluate() -> Any:
            with torch.inference_mode():
                return forward(state, images)

        return evaluate

    return {
        "torch": call(state, nhwc.contiguous()),
        "torch_channels_last": call(channels_last, nhwc),
    }


def _calls_a_second(call: Callable[[], object], seconds: float) -> float:
    call()  # meanwhile the other library's threads come to rest
    start = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        call()
        count += 1
    return count / elapsed


def measure_and_print(args: argparse.Namespace) -> None:
    """Measures the models that the options name and prints a line for each."""
    models = [create_model(name) for name in args.models or MODELS]
    torch = torch_is_installed()
    tell_if_busy()
    print(
        f"images/s in evaluation on {jax.devices()[0].device_kind}, float32, batch {args.batch},"
        f" medians of {args.rounds} rounds"
    )
    print(_row("model", "noah_jax", "PyTorch", "ratio", "channels last", "ratio"))
    for model in models:
        with working(f"compiling and timing {model.name}"):
            speeds = benchmark_eval(model, batch=args.batch, rounds=args.rounds, torch=torch)
        jax_speeds = speeds["noah_jax"]
        cells = [f"{statistics.median(jax_speeds):.1f}"]
        for name in ("torch", "torch_channels_last"):
            if torch_speeds := speeds.get(name):
                pairs = zip(jax_speeds, torch_speeds, strict=True)
                ratio = statistics.median(a / b for a, b in pairs)
                cells += [f"{statistics.median(torch_speeds):.1f}", f"{ratio:.2f}"]
        print(_row(model.name, *cells), flush=True)
    if not torch:
        print(TORCH_IS_MISSING)


def tell_if_busy() -> None:
    """Prints a warning where other programs would spoil the figures."""
    if (load := os.getloadavg()[0]) > _QUIET:
        print(f"the machine is busy (load {load:.1f}): measure again when it is not")


def _row(model: str, *cells: str) -> str:
    widths = (9, 9, 6, 14, 6)
    return f"{model:34}" + "".join(
        f" {cell:>{width}}" for cell, width in zip(cells, widths, strict=False)
    )
