"""Writes tests/data/golden/timm_heads.npz: what timm's attentive layers compute on random weights.

    python scripts/make_timm_head_vectors.py

Needs PyTorch and timm. An array's name is its case and `features` (positions in rows), `output`, or
`weights/` and timm's own name of the parameter. The features and the weights are rounded to two
digits, so that the file is small.
"""

from noah_jax.cli import show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import timm.layers
import torch
from timm.layers import ml_decoder
from timm.models.cait import Cait

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "data" / "golden"
BATCH, POSITIONS, CHANNELS, CLASSES = 2, 6, 8, 7


class ClassAttention(torch.nn.Module):
    """The end of CaiT: the blocks of the class token, the norm and the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        sizes = dict(embed_dim=CHANNELS, num_heads=2, num_classes=CLASSES)
        cait = Cait(img_size=16, patch_size=16, depth=0, mlp_ratio_token_only=2.0, **sizes)
        self.cls_token = cait.cls_token
        self.blocks_token_only, self.norm, self.head = (
            cait.blocks_token_only,
            cait.norm,
            cait.head,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the logits of positions `[batch, positions, channels]`."""
        token = self.cls_token.expand(len(x), -1, -1)
        for block in self.blocks_token_only:
            token = block(x, token)
        return self.head(self.norm(token)[:, 0])


class OneLayer(torch.nn.Module):
    """Stands for `torch.nn.TransformerDecoder`, which new PyTorch refuses to run on timm's layer.

    It looks for a self-attention, which that layer does not have.
    """

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layers = torch.nn.ModuleList([layer])

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Computes the layer of queries and positions, `[length, batch, channels]`."""
        return self.layers[0](queries, memory)


def small_ml_decoder(num_classes: int, groups: int) -> torch.nn.Module:
    """Returns an ML-Decoder of timm with fewer channels than it lets one choose."""
    width, hidden = 16, 24
    net = ml_decoder.MLDecoder(num_classes, groups, width, CHANNELS)
    net.decoder = OneLayer(ml_decoder.TransformerDecoderLayerOptimal(width, dim_feedforward=hidden))
    return net


CASES: dict[str, Callable[[], torch.nn.Module]] = {
    "simpool": lambda: timm.layers.SimPool1d(CHANNELS),
    "simpool_gamma": lambda: timm.layers.SimPool1d(CHANNELS, num_heads=2, gamma=1.25),
    "ml_decoder": lambda: small_ml_decoder(CLASSES, 3),  # groups of 3, 3 and 1 class
    "ml_decoder_all": lambda: small_ml_decoder(CLASSES, -1),  # a group for each class
    "class_attention": ClassAttention,
    "map": lambda: timm.layers.AttentionPoolLatent(
        CHANNELS,
        num_heads=2,
        mlp_ratio=3.0,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    ),
}


def compute(name: str, seed: int) -> dict[str, np.ndarray]:
    """Computes the arrays of one case, on random weights and features."""
    random = np.random.RandomState(seed)
    net = CASES[name]().eval()
    state = net.state_dict()
    weights = {key: random.standard_normal(x.shape).round(2) for key, x in state.items()}
    net.load_state_dict({key: torch.from_numpy(x) for key, x in weights.items()})
    features = random.standard_normal((BATCH, POSITIONS, CHANNELS)).round(2)
    with torch.inference_mode():
        output = net.double()(torch.from_numpy(features)).numpy()
    arrays = {f"{name}/weights/{key}": x for key, x in weights.items()}
    arrays |= {f"{name}/features": features, f"{name}/output": output}
    return {key: x.astype(np.float32) for key, x in arrays.items()}


def main() -> None:
    """Writes the file."""
    arrays: dict[str, np.ndarray] = {}
    for seed, name in enumerate(CASES):
        arrays |= compute(name, seed)
    np.savez_compressed(GOLDEN / "timm_heads.npz", **arrays)


if __name__ == "__main__":
    main()
