"""Writes what a PyTorch model answers, for `python -m noah_jax.parity --checkpoint`.

Needs PyTorch and NumPy only; copy this file to where the model runs. In a program:

    from dump_torch_reference import dump
    dump(model, "ref.npz", image_size=224, batch=8)

or, given a function without arguments that returns the model with its weights loaded:

    python dump_torch_reference.py my_module:make_model ref.npz --image-size 224 --batch 8
"""

import argparse
import copy
import importlib
import os
import sys

import numpy as np


def dump(model, path, image_size=224, batch=8, seed=0):
    """Saves random images and the logits of a model for them, on the CPU, in evaluation mode.

    The file has `images` (float32, `[batch, 3, height, width]`, as if normalised), `logits`
    (float64, `[batch, num_classes]`) and `logits_float32` (by the model in float32).

    Args:
      model: a `torch.nn.Module` whose answer is the logits; it is copied, not changed.
      path: the npz file to write.
      image_size: pixels, or `(height, width)`.
      batch: how many images.
      seed: of the images.

    Raises:
      ValueError: if the model's answer is not `[batch, num_classes]`.
    """
    import torch  # takes seconds, --help should not

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    random = np.random.RandomState(seed)
    # Coarse patches and fine noise, so that a model has both to see.
    coarse = random.standard_normal((batch, 3, 8, 8)).astype(np.float32)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    images = coarse[:, :, rows][:, :, :, columns]
    images = images + 0.5 * random.standard_normal(images.shape).astype(np.float32)
    model = getattr(model, "module", model)  # of DataParallel, which wants a GPU
    model = copy.deepcopy(model).cpu().eval()
    answers = {}
    with torch.no_grad():
        for name, dtype in (("logits_float32", torch.float32), ("logits", torch.float64)):
            logits = model.to(dtype)(torch.from_numpy(images).to(dtype))
            if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
                shown = getattr(logits, "shape", type(logits).__name__)
                raise ValueError(f"the model answers {shown}, a tensor [batch, classes] expected")
            answers[name] = logits.numpy()
    np.savez(path, images=images, **answers)


def main(argv=None):
    """Dumps the model that the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODULE:FUNCTION")
    parser.add_argument("path", metavar="OUT.npz")
    parser.add_argument("--image-size", type=int, default=224, nargs="+", metavar="PIXELS")
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args(argv)
    size = args.image_size if isinstance(args.image_size, int) else tuple(args.image_size)
    size = size[0] if isinstance(size, tuple) and len(size) == 1 else size
    module, colon, function = args.model.partition(":")
    if not colon:
        parser.error(f"MODULE:FUNCTION expected, got {args.model!r}")
    sys.path.insert(0, os.getcwd())
    dump(getattr(importlib.import_module(module), function)(), args.path, size, args.batch)
    print(f"{args.batch} image(s) and their logits in {args.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
