"""Writes tests/data/golden/bicubic.npz: grids resized as DeiT resizes its position embeddings.

    python scripts/make_bicubic_vectors.py

Needs PyTorch, which resizes in float64: its float32 rounds to 3e-6. `ROWSxCOLUMNS` is the
embeddings of a grid, `[1, rows * columns, channels]`, and `ROWSxCOLUMNS/ROWSxCOLUMNS` what
they become on the second one. `.../antialiased` is what timm's DINOv2 makes of them.
"""

from noah_jax.cli import show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import pathlib

import numpy as np
import torch

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "data" / "golden"
CHANNELS = 2
GRIDS = (
    ((14, 14), (24, 24)),
    ((14, 14), (7, 7)),
    ((5, 3), (7, 8)),
    ((4, 4), (6, 3)),
    ((2, 2), (3, 2)),
    ((1, 1), (2, 3)),
    ((37, 37), (16, 16)),
)


def resize(
    x: np.ndarray, old: tuple[int, int], new: tuple[int, int], *, antialias: bool
) -> np.ndarray:
    """Position embeddings `[1, rows * columns, channels]` of another grid."""
    image = torch.from_numpy(x).double().reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = torch.nn.functional.interpolate(
        image, size=new, mode="bicubic", align_corners=False, antialias=antialias
    )
    return image.permute(0, 2, 3, 1).flatten(1, 2).float().numpy()


def main() -> None:
    """Writes the file."""
    random = np.random.RandomState(0)
    arrays = {}
    for old, new in GRIDS:
        key = "{}x{}".format(*old)
        if key not in arrays:
            arrays[key] = random.randn(1, old[0] * old[1], CHANNELS).astype(np.float32)
        target = "{}/{}x{}".format(key, *new)
        arrays[target] = resize(arrays[key], old, new, antialias=False)
        arrays[f"{target}/antialiased"] = resize(arrays[key], old, new, antialias=True)
    np.savez_compressed(GOLDEN / "bicubic.npz", **arrays)


if __name__ == "__main__":
    main()
