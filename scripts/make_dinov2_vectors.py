"""Writes tests/data/golden/dinov2.npz: features and logits of small DINOv2 models of timm.

    python scripts/make_dinov2_vectors.py

Needs PyTorch and timm; 1.0.31 wrote the file. The models are `vit_small_patch14_dinov2` and
`vit_small_patch14_reg4_dinov2` with the sizes below. Their weights and images follow the rule of
`noah_jax/pytorch/golden.py`, with a gain of 1. They are made for images of 56 pixels; at other
sizes timm interpolates the position embeddings (`dynamic_img_size`). `NAME/HEIGHTxWIDTH/features`
is the last map `[batch, rows, columns, channels]`, `NAME/HEIGHTxWIDTH/logits` are those of the
linear head; both are computed in float64.
"""

from noah_jax.cli import show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import pathlib

import numpy as np
import timm
import torch

from noah_jax.pytorch.golden import golden_images, golden_state_dict

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "data" / "golden"
NAMES = ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2")
SIZES = dict(embed_dim=24, depth=2, num_heads=3, num_classes=5, img_size=56)
IMAGES = ((56, 56), (42, 84))  # height, width


def main() -> None:
    """Writes the file."""
    arrays = {}
    for name in NAMES:
        model = timm.create_model(name, dynamic_img_size=True, **SIZES).double().eval()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        state = golden_state_dict(shapes, gain=1.0)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        for height, width in IMAGES:
            images = golden_images(84)[:, :height, :width].astype(np.float64)
            with torch.inference_mode():
                tokens = model.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2))
                logits = model.forward_head(tokens)
            patches = tokens[:, model.num_prefix_tokens :]
            key = f"{name}/{height}x{width}"
            grid = (len(images), height // 14, width // 14, -1)
            arrays[f"{key}/features"] = patches.reshape(grid).numpy()
            arrays[f"{key}/logits"] = logits.numpy()
    np.savez_compressed(GOLDEN / "dinov2.npz", **arrays)


if __name__ == "__main__":
    main()
