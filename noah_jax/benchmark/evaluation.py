"""How fast models evaluate, beside PyTorch on the same weights and images.

    python -m noah_jax.benchmark --what eval [--models NAME,NAME...] [--batch 8] [--rounds 7]

Ours is the jitted `model.apply` of this process's device, PyTorch's the original's forward
pass under `inference_mode` on the CPU; both in float32. They take turns in one process, so
that the machine's noise meets both. Without PyTorch only ours is measured.
"""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from noah_jax.cli import Parser, positive
from noah_jax.errors import InputError
from noah_jax.models import create_model
from noah_jax.models.base import Model
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
_SECONDS = 0.5  # of one measurement
_QUIET = 0.5  # load average that leaves the figures alone; PyTorch suffers more than XLA
_AGREE = 1e-3  # of the logits' standard deviation


def benchmark_eval(
    model: Model, *, batch: int, rounds: int, seconds: float = _SECONDS, torch: bool
) -> dict[str, list[float]]:
    """Images a second in every round, by what computes them.

    Args:
      model: what to evaluate, on random images and weights.
      batch: images a call.
      rounds: measurements of each.
      seconds: about how long one measurement takes.
      torch: whether to measure PyTorch too.

    Returns:
      `{"noah_jax": [...]}` and, with `torch`, `"torch"` and `"torch_channels_last"`: the
      default layout of images, which the original has, and channels last.

    Raises:
      ValueError: if PyTorch's logits are not ours; the two would not be comparable.
    """
    params, stats = example_weights(model)
    random = np.random.RandomState(0)
    images = random.standard_normal((batch, *model.image_size, 3)).astype(np.float32)
    calls = {"noah_jax": _our_call(model, params, stats, images)}
    if torch:
        calls |= _torch_calls(model, params, stats, images)
    logits = {name: np.asarray(call()) for name, call in calls.items()}  # compiles, too
    for name, theirs in logits.items():
        difference = np.abs(theirs - logits["noah_jax"]).max() / theirs.std()
        if not difference <= _AGREE:
            raise InputError(
                f"{model.name}: {name}'s logits differ by {difference:.1e} of their std"
            )
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            speeds[name].append(batch * _calls_a_second(call, seconds))
    return speeds


def _our_call(model, params, stats, images) -> Callable[[], jax.Array]:
    apply = jax.jit(
        lambda *arguments: model.apply(*arguments, train=False)[0],
        compiler_options=model.evaluation_options(),
    )
    arguments = jax.device_put((params, stats, images))
    return lambda: apply(*arguments).block_until_ready()


def _torch_calls(model, params, stats, images) -> dict[str, Callable]:
    import torch

    state = torch_state(model, params, stats)
    channels_last = {
        key: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for key, tensor in state.items()
    }
    forward = torch_forward(model)
    nhwc = torch.from_numpy(images).permute(0, 3, 1, 2)

    def call(state, images):
        def evaluate():
            with torch.inference_mode():
                return forward(state, images)

        return evaluate

    return {
        "torch": call(state, nhwc.contiguous()),
        "torch_channels_last": call(channels_last, nhwc),
    }


def _calls_a_second(call: Callable[[], object], seconds: float) -> float:
    call()  # the other's threads come to rest
    start = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - start) < seconds or not count:
        call()
        count += 1
    return count / elapsed


def main(argv: list[str]) -> None:
    """Measures what the command line asks for and prints it, a line for a model."""
    parser = Parser("--what eval", add_help=False)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--rounds", type=positive, default=7)
    given = parser.parse_args(argv[1:])
    models = [create_model(name) for name in given.models.split(",")]
    torch = importlib.util.find_spec("torch") is not None
    tell_if_busy()
    print(
        f"images/s in evaluation on {jax.devices()[0].device_kind}, float32, batch {given.batch},"
        f" medians of {given.rounds} rounds"
    )
    print(_row("model", "noah_jax", "PyTorch", "ratio", "channels last", "ratio"))
    for model in models:
        speeds = benchmark_eval(model, batch=given.batch, rounds=given.rounds, torch=torch)
        ours = speeds["noah_jax"]
        cells = [f"{statistics.median(ours):.1f}"]
        for name in ("torch", "torch_channels_last"):
            if theirs := speeds.get(name):
                ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
                cells += [f"{statistics.median(theirs):.1f}", f"{ratio:.2f}"]
        print(_row(model.name, *cells), flush=True)
    if not torch:
        print("PyTorch is not installed, so there is nothing to compare with; pip install torch")


def tell_if_busy() -> None:
    """Prints a warning where other programs would spoil the figures."""
    if (load := os.getloadavg()[0]) > _QUIET:
        print(f"the machine is busy (load {load:.1f}): measure again when it is not")


def _row(model: str, *cells: str) -> str:
    widths = (9, 9, 6, 14, 6)
    return f"{model:34}" + "".join(
        f" {cell:>{width}}" for cell, width in zip(cells, widths, strict=False)
    )
