"""Writes the logits of a PyTorch model, for `python -m noah_jax.parity --checkpoint`.

Needs PyTorch and NumPy only, so copy this file to where the model runs. In a program:

    from dump_torch_reference import dump
    dump(model, "ref.npz", image_size=224, batch=8)

or, if a function without arguments returns the model with its weights loaded:

    python dump_torch_reference.py my_module:make_model ref.npz --image-size 224 --batch 8
"""

import argparse
import copy
import difflib
import importlib
import inspect
import os
import sys

import numpy as np


def dump(model, path, image_size=224, batch=8, seed=0):
    """Saves random images and the logits that a model computes for them.

    The model runs on the CPU in evaluation mode. The file has `images` (float32,
    `[batch, 3, height, width]`, as if normalised), `logits` (`[batch, num_classes]`, computed in
    float64) and `logits_float32` (computed in float32).

    Args:
      model: A `torch.nn.Module` that returns the logits. It is copied, not changed.
      path: The npz file to write.
      image_size: Pixels, one number or `(height, width)`.
      batch: Number of images.
      seed: Seed of the random images.

    Raises:
      ValueError: If the model returns anything but `[batch, num_classes]`.
    """
    import torch  # takes seconds, for which --help should not wait

    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    random = np.random.RandomState(seed)
    # The images have coarse patches and fine noise, because models respond to both.
    coarse = random.standard_normal((batch, 3, 8, 8)).astype(np.float32)
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    images = coarse[:, :, rows][:, :, :, columns]
    images = images + 0.5 * random.standard_normal(images.shape).astype(np.float32)
    model = getattr(model, "module", model)  # DataParallel itself would want a GPU
    model = copy.deepcopy(model).cpu().eval()
    arrays = {}
    with torch.no_grad():
        for name, dtype in (("logits_float32", torch.float32), ("logits", torch.float64)):
            logits = model.to(dtype)(torch.from_numpy(images).to(dtype))
            if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
                shown = getattr(logits, "shape", f"a {type(logits).__name__}")
                raise ValueError(
                    f"the model returns {shown}, expected a tensor [batch, classes]; if the logits"
                    " are a part of that, wrap the model in one that returns them alone"
                )
            arrays[name] = logits.numpy()
    np.savez(path, images=images, **arrays)


def _make(module, function):
    """Calls the user's function; raises a ValueError if it is not what is expected."""
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ValueError(f"there is no module {module} here ({os.getcwd()})") from error
    make = getattr(found, function, None)
    if not callable(make):
        near = difflib.get_close_matches(function, vars(found), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{module} has no function {function}{hint}")
    required = [
        name
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise ValueError(f"{module}:{function} needs {', '.join(required)}; name one without")
    model = make()
    if not (callable(model) and hasattr(model, "eval") and hasattr(model, "to")):
        raise ValueError(
            f"{module}:{function} returns a {type(model).__name__}, expected a torch.nn.Module"
        )
    return model


def main(argv=None):
    """Runs the program on a command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODULE:FUNCTION", help="function that returns the model")
    parser.add_argument("path", metavar="OUT.npz", help="the file to write")
    parser.add_argument(
        "--image-size",
        type=int,
        default=[224],
        nargs="+",
        metavar="PIXELS",
        help="side of the images, or height and width; by default 224",
    )
    parser.add_argument("--batch", type=int, default=8, help="number of images; by default 8")
    args = parser.parse_args(argv)
    size = args.image_size[0] if len(args.image_size) == 1 else tuple(args.image_size)
    module, colon, function = args.model.partition(":")
    if not colon:
        parser.error(f"expected MODULE:FUNCTION, got {args.model!r}")
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(args.path)))
    if not os.path.isdir(folder):
        parser.error(f"there is no folder {folder} for {args.path}")
    sys.path.insert(0, os.getcwd())
    try:
        model = _make(module, function)
        dump(model, os.path.expanduser(args.path), size, args.batch)
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {' '.join(str(error).split())}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped by Ctrl-C\n")
    print(f"{args.batch} image(s) and their logits in {args.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
