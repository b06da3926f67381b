"""Checks the logits of a checkpoint against those of the user's own PyTorch model.

`scripts/dump_torch_reference.py` writes the reference.
"""

import os
import zipfile

import numpy as np

from noah_jax.errors import InputError, MissingError, ReadError
from noah_jax.inference.loading import load_model
from noah_jax.parity.models import FACTOR, FLOOR

# Limit if PyTorch's own float32 error is not known.
LIMIT = 1e-4


def check_checkpoint(checkpoint: str, reference: str, *, batch_size: int = 32) -> bool:
    """Prints how far a model's float32 logits are from a reference.

    Args:
      checkpoint: A folder or PyTorch file that `noah_jax.load_model` takes.
      reference: An npz file with `images` (float32, normalised, `[batch, 3, height, width]`),
        `logits` (float64, `[batch, num_classes]`) and, if PyTorch's own float32 error is to be
        the measure, `logits_float32` of the same images.
      batch_size: Number of images to compute at a time.

    Returns:
      Whether the logits agree.

    Raises:
      MissingError: If there is no such reference.
      InputError: If the reference lacks something or belongs to another model, or the checkpoint
        cannot be read.
    """
    arrays = _read(reference)
    images = arrays["images"].astype(np.float32).transpose(0, 2, 3, 1)
    logits = arrays["logits"].astype(np.float64)
    model, params, stats = load_model(checkpoint)
    if model.arguments["features_only"]:
        raise InputError(f"{checkpoint} holds a {model.name} without a head, so it has no logits")
    if logits.shape[1] != model.num_classes:
        raise InputError(
            f"{reference} has logits of {logits.shape[1]} classes, {model.name} of {checkpoint}"
            f" has {model.num_classes}; they are different models"
        )
    starts = range(0, len(images), batch_size)
    batches = [model.predict(params, stats, images[i : i + batch_size]) for i in starts]
    actual = np.concatenate([np.asarray(batch, np.float64) for batch in batches])

    scale = logits.std()
    difference = np.abs(actual - logits) / scale
    limit, reason = LIMIT, "the file has no logits_float32"
    print(f"{model.name} of {checkpoint}, {len(images)} image(s) of {reference}")
    print(f"  largest difference / std of the logits  {difference.max():.2e}")
    print(f"  mean difference / std of the logits     {difference.mean():.2e}")
    print(f"  same top-1 class                        {_same_class(actual, logits):.2f} %")
    if "logits_float32" in arrays:
        torch_error = (np.abs(arrays["logits_float32"].astype(np.float64) - logits) / scale).max()
        limit, reason = FACTOR * torch_error + FLOOR, f"{FACTOR:g} times PyTorch's + {FLOOR:g}"
        print(f"  PyTorch's own float32, largest          {torch_error:.2e}")
    agrees = bool(difference.max() <= limit)  # false for NaN
    print(f"  limit                                   {limit:.2e} ({reason})")
    print("agrees" if agrees else "DOES NOT AGREE")
    return agrees


def _same_class(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the percentage of images with the same top-1 class."""
    return 100 * float(np.mean(actual.argmax(1) == expected.argmax(1)))


def _read(path: str) -> dict[str, np.ndarray]:
    """Reads the arrays of a reference and checks that their shapes fit each other."""
    how = "scripts/dump_torch_reference.py writes such files"
    if not os.path.isfile(path):
        raise MissingError(f"{path} is not a file; --reference must be an npz file, {how}")
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ReadError(f"{path} is not an npz file of plain arrays ({error}); {how}") from error
    missing = [key for key in ("images", "logits") if key not in arrays]
    if missing:
        raise InputError(
            f"{path} lacks {' and '.join(missing)}, it has {', '.join(arrays) or 'nothing'}; {how}"
        )
    images, logits = arrays["images"], arrays["logits"]
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise InputError(
            f"{path}: images have shape {images.shape}, expected [batch, 3, height, width]"
        )
    for key in ("logits", "logits_float32"):
        array = arrays.get(key, logits)
        if array.ndim != 2 or array.shape != logits.shape or len(array) != len(images):
            raise InputError(
                f"{path}: {key} has shape {array.shape}, expected [{len(images)}, num_classes],"
                " the same for both kinds of logits"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{path}: {key} is not finite, so nothing can agree with it")
    if not logits.std() > 0:
        raise InputError(f"{path}: all logits are equal, so they say nothing; use trained weights")
    return arrays
