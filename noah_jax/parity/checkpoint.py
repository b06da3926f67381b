"""Parity of a checkpoint: its logits here against those of the user's own PyTorch model.

`scripts/dump_torch_reference.py` writes the reference.
"""

import os
import zipfile

import jax
import numpy as np

from noah_jax.inference.loading import load_model
from noah_jax.parity.files import GoldenError
from noah_jax.parity.models import FACTOR, FLOOR

# Where PyTorch's own float32 error is not known.
LIMIT = 1e-4


def check_checkpoint(checkpoint: str, reference: str, *, batch_size: int = 32) -> bool:
    """Prints how far a model's float32 logits are from a reference's; whether they agree.

    Args:
      checkpoint: what `noah_jax.load_model` takes: a folder or a PyTorch file.
      reference: an npz with `images`, float32, normalised, `[batch, 3, height, width]`;
        `logits`, float64, `[batch, num_classes]`; and, if PyTorch's own float32 error is to
        be the measure, `logits_float32` of the same images.
      batch_size: images at a time.

    Raises:
      GoldenError: in one line, if the reference lacks something or is another model's.
      ValueError: if the checkpoint cannot be read.
    """
    arrays = _read(reference)
    images = arrays["images"].astype(np.float32).transpose(0, 2, 3, 1)
    logits = arrays["logits"].astype(np.float64)
    model, params, stats = load_model(checkpoint)
    if logits.shape[1] != model.num_classes:
        raise GoldenError(
            f"{reference} has logits of {logits.shape[1]} classes, {model.name} of {checkpoint}"
            f" has {model.num_classes}; they are different models"
        )
    apply = jax.jit(lambda params, stats, x: model.apply(params, stats, x, train=False)[0])
    starts = range(0, len(images), batch_size)
    parts = [apply(params, stats, images[i : i + batch_size]) for i in starts]
    ours = np.concatenate([np.asarray(part, np.float64) for part in parts])

    scale = logits.std()
    difference = np.abs(ours - logits) / scale
    limit, source = LIMIT, "the file has no logits_float32"
    print(f"{model.name} of {checkpoint}, {len(images)} image(s) of {reference}")
    print(f"  largest difference / std of the logits  {difference.max():.2e}")
    print(f"  mean difference / std of the logits     {difference.mean():.2e}")
    print(f"  same top-1 class                        {_same_class(ours, logits):.2f} %")
    if "logits_float32" in arrays:
        theirs = np.abs(arrays["logits_float32"].astype(np.float64) - logits) / scale
        limit, source = FACTOR * theirs.max() + FLOOR, f"{FACTOR:g} times PyTorch's + {FLOOR:g}"
        print(f"  PyTorch's own float32, largest          {theirs.max():.2e}")
    agrees = bool(difference.max() <= limit)  # not so for NaN
    print(f"  limit                                   {limit:.2e} ({source})")
    print("agrees" if agrees else "DOES NOT AGREE")
    return agrees


def _same_class(ours: np.ndarray, theirs: np.ndarray) -> float:
    return 100 * float(np.mean(ours.argmax(1) == theirs.argmax(1)))


def _read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a reference, whose shapes fit each other."""
    how = "scripts/dump_torch_reference.py writes such files"
    if not os.path.isfile(path):
        raise GoldenError(f"{path} is no file; --reference must be an npz, {how}")
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise GoldenError(f"{path} is no npz of plain arrays ({error}); {how}") from error
    missing = [key for key in ("images", "logits") if key not in arrays]
    if missing:
        raise GoldenError(
            f"{path} lacks {' and '.join(missing)}, it has {', '.join(arrays) or 'nothing'}; {how}"
        )
    images, logits = arrays["images"], arrays["logits"]
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise GoldenError(
            f"{path}: images have shape {images.shape}, [batch, 3, height, width] expected"
        )
    for key in ("logits", "logits_float32"):
        found = arrays.get(key, logits)
        if found.ndim != 2 or found.shape != logits.shape or len(found) != len(images):
            raise GoldenError(
                f"{path}: {key} has shape {found.shape}, [{len(images)}, num_classes] expected,"
                " the same for both kinds of logits"
            )
        if not np.isfinite(found).all():
            raise GoldenError(f"{path}: {key} is not finite, so nothing can agree with it")
    if not logits.std() > 0:
        raise GoldenError(
            f"{path}: all logits are equal, so they tell nothing; use trained weights"
        )
    return arrays
