"""Writes tests/data/golden/timm_map.npz: what timm's AttentionPoolLatent computes.

    python scripts/make_map_vectors.py

Needs PyTorch and timm. The file holds `features` (positions in rows), the `output`, and
`weights/` with timm's own names of the parameters.
"""

from noah_jax.cli import show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import functools
import pathlib

import numpy as np
import torch
from timm.layers import AttentionPoolLatent

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "data" / "golden"
CHANNELS, NUM_HEADS, MLP_RATIO = 8, 2, 3.0


def main() -> None:
    """Writes the file."""
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    net = AttentionPoolLatent(
        CHANNELS, num_heads=NUM_HEADS, mlp_ratio=MLP_RATIO, norm_layer=norm
    ).double()
    random = np.random.RandomState(0)
    weights = {key: random.standard_normal(x.shape).round(2) for key, x in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(x) for key, x in weights.items()})
    features = random.standard_normal((2, 6, CHANNELS)).round(2)
    with torch.inference_mode():
        output = net.eval()(torch.from_numpy(features)).numpy()
    arrays = {f"weights/{key}": x for key, x in weights.items()}
    arrays |= {"features": features, "output": output}
    np.savez_compressed(
        GOLDEN / "timm_map.npz", **{key: x.astype(np.float32) for key, x in arrays.items()}
    )


if __name__ == "__main__":
    main()
