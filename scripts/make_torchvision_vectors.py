"""Writes tests/data/golden/torchvision.npz: random crops, colour jitter and centre crops.

    python scripts/make_torchvision_vectors.py

Needs PyTorch and torchvision. The name of each array has the operation, the photograph and the
parameters, separated by slashes. The array `draws/WIDTH,HEIGHT` has a row for each random box:
left, top, right, bottom, and the values that torchvision drew for it, padded with NaN. These are
area and logarithm of the aspect ratio for every try and, if the last try fitted, top and left.
"""

from noah_jax.cli import show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import pathlib
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "data" / "golden"
SIZE = (40, 48)  # height, width
BOXES = ((17, 9, 150, 141), (0, 0, 31, 20), (100, 60, 101, 160), (5, 7, 53, 47))
ADJUST = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
}
JITTERS = (
    (("contrast", 1.37), ("brightness", 0.63), ("saturation", 1.21)),
    (("saturation", 0.0), ("contrast", 0.6), ("brightness", 1.4)),
)
CENTRES = ((41, 50), (43, 47), (38, 55), (47, 45), (33, 41))  # of images of SIZE
IMAGES = ((500, 375), (64, 1000), (640, 30), (9, 7), (1, 1))  # width, height
MAX_DRAWS = 22  # two for each of ten tries, and two for the position


def random_boxes(width: int, height: int, count: int = 40) -> np.ndarray:
    """Draws random boxes; returns the rows described above, `[count, 4 + MAX_DRAWS]`."""
    image = Image.new("RGB", (width, height))
    rows = np.full((count, 4 + MAX_DRAWS), np.nan)
    uniform, randint = torch.Tensor.uniform_, torch.randint
    for row in rows:
        drawn: list[float] = []

        def record(tensor: torch.Tensor, drawn: list[float] = drawn) -> torch.Tensor:
            drawn.append(tensor.item())
            return tensor

        with (
            mock.patch.object(torch.Tensor, "uniform_", lambda *a, r=record: r(uniform(*a))),
            mock.patch.object(torch, "randint", lambda *a, r=record, **k: r(randint(*a, **k))),
        ):
            top, left, h, w = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        row[:4] = left, top, left + w, top + h
        row[4 : 4 + len(drawn)] = drawn
    return rows


def main() -> None:
    torch.manual_seed(0)
    arrays = {}
    photographs = {
        name: Image.open(GOLDEN / "images" / name).convert("RGB")
        for name in ("china.jpg", "flower_portrait.jpg")
    }
    for name, image in photographs.items():
        for box in BOXES:
            left, top, right, bottom = box
            for mode in ("bilinear", "bicubic"):
                out = tv.resized_crop(
                    image,
                    top,
                    left,
                    bottom - top,
                    right - left,
                    list(SIZE),
                    InterpolationMode(mode),
                )
                arrays[f"crop/{name}/{left},{top},{right},{bottom}/{mode}"] = np.asarray(out)
        small = tv.resize(image, list(SIZE))
        arrays[f"small/{name}"] = np.asarray(small)
        arrays[f"flip/{name}"] = np.asarray(tv.hflip(small))
        for jitter in JITTERS:
            out = small
            for kind, factor in jitter:
                out = ADJUST[kind](out, factor)
            text = ",".join(f"{kind}={factor}" for kind, factor in jitter)
            arrays[f"jitter/{name}/{text}"] = np.asarray(out)
        for height, width in CENTRES:
            out = tv.center_crop(small, [height, width])
            arrays[f"centre/{name}/{height},{width}"] = np.asarray(out)
    for width, height in IMAGES:
        arrays[f"draws/{width},{height}"] = random_boxes(width, height)
    np.savez_compressed(GOLDEN / "torchvision.npz", **arrays)


if __name__ == "__main__":
    main()
