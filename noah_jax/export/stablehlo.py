"""Exports a model's forward pass by `jax.export`; checks that programs give the model's logits."""

import contextlib
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from noah_jax.errors import InputError
from noah_jax.inference.device_memory import raise_if_out_of_memory
from noah_jax.inference.step import make_predict_step
from noah_jax.inference.trained import TrainedModel

PLATFORMS = ("cpu", "tpu", "cuda")

CHECKED_BATCHES = (2, 3)  # sizes of the batches on which a program is checked
# The largest allowed difference over the logits' standard deviation, by the model's dtype. The
# operations are the same, but XLA may fuse them differently.
_TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
_TOLERANCE_OF_NARROW_DTYPES = 0.05


def export_forward(trained: TrainedModel) -> jax.export.Exported:
    """Exports the function from images to logits, with the weights in it.

    The head is computed by operations that every platform has, without kernels.

    Returns:
      A program for all `PLATFORMS` that takes uint8 images `[batch, height, width, 3]`, for any
      batch size, and returns float32 logits `[batch, num_classes]`.
    """
    model = trained.model.portable()
    preprocessing = trained.preprocessing
    predict = make_predict_step(model, mean=preprocessing.mean, std=preprocessing.std)

    def logits(images: jax.Array) -> jax.Array:
        return predict(trained.params, trained.stats, images)

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *preprocessing.size, 3), jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)


def check_exported(trained: TrainedModel, exported: jax.export.Exported) -> float:
    """Compares the exported program with the model, on random images.

    Returns:
      The largest difference between their logits, over the standard deviation of the logits.

    Raises:
      InputError: If the difference is too large, or if JAX runs on a platform that the program is
        not for.
    """
    platform = jax.default_backend()
    if platform not in ("cpu", "tpu", "gpu"):
        raise InputError(f"the exported program cannot be run on {platform}; export on a CPU")
    shape = (sum(CHECKED_BATCHES), *trained.preprocessing.size, 3)
    images = np.random.RandomState(0).randint(0, 256, shape, np.uint8)
    return largest_difference(trained, exported.call, images, "the exported program")


def largest_difference(
    trained: TrainedModel,
    program: Callable[[np.ndarray], jax.Array | np.ndarray],
    images: np.ndarray,
    name: str,
) -> float:
    """Compares a program with the model, on batches of several sizes.

    Args:
      trained: The model.
      program: Computes logits from uint8 images `[batch, height, width, 3]`.
      images: The images; the batches are cut from them.
      name: How an error calls the program.

    Returns:
      The largest difference between their logits, over the standard deviation of the logits.

    Raises:
      InputError: If the difference is too large.
    """
    worst, start = 0.0, 0
    # By default, accelerators round float32 to fewer bits, in an order of their own.
    precision = (
        jax.default_matmul_precision("float32")
        if jax.default_backend() != "cpu"
        else contextlib.nullcontext()
    )
    with precision, raise_if_out_of_memory(f"a batch of {max(CHECKED_BATCHES)} images"):
        for batch_size in CHECKED_BATCHES:
            batch = images[start : start + batch_size]
            start += batch_size
            expected = np.asarray(trained.predict(batch))
            actual = np.asarray(program(batch))
            scale = float(expected.std()) or 1.0
            worst = max(worst, float(np.abs(actual - expected).max()) / scale)
    dtype = str(jnp.dtype(trained.model.arguments["dtype"]))
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE_OF_NARROW_DTYPES)
    if not worst <= tolerance:  # also if it is NaN
        raise InputError(
            f"{name}'s logits differ from the model's by {worst:.1e} of their standard deviation,"
            f" and {tolerance:.0e} is allowed; nothing was written"
        )
    return worst
