"""Exports a model's forward pass by `jax.export`, and checks that it gives the same logits."""

import contextlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from noah_jax.errors import InputError
from noah_jax.inference.device_memory import raise_if_out_of_memory
from noah_jax.inference.step import make_predict_step
from noah_jax.inference.trained import TrainedModel

PLATFORMS = ("cpu", "tpu", "cuda")

_CHECKED_BATCHES = (2, 3)  # sizes of the batches on which the program is checked
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
    random = np.random.RandomState(0)
    worst = 0.0
    # By default, accelerators round float32 to fewer bits, in an order of their own.
    precision = (
        jax.default_matmul_precision("float32") if platform != "cpu" else contextlib.nullcontext()
    )
    with precision, raise_if_out_of_memory(f"a batch of {max(_CHECKED_BATCHES)} images"):
        for batch_size in _CHECKED_BATCHES:
            shape = (batch_size, *trained.preprocessing.size, 3)
            images = random.randint(0, 256, shape, np.uint8)
            expected = np.asarray(trained.predict(images))
            actual = np.asarray(exported.call(images))
            scale = float(expected.std()) or 1.0
            worst = max(worst, float(np.abs(actual - expected).max()) / scale)
    dtype = str(jnp.dtype(trained.model.arguments["dtype"]))
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE_OF_NARROW_DTYPES)
    if not worst <= tolerance:  # also if it is NaN
        raise InputError(
            f"the exported program's logits differ from the model's by {worst:.1e} of their"
            f" standard deviation, and {tolerance:.0e} is allowed; nothing was written"
        )
    return worst
