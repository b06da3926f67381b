"""DeiT on ImageNet-1k with either head: the original's recipe, 300 epochs.

    python -m noah_jax.train --config deit.py:noah_deit_tiny_patch16_224 --workdir DIR

Variants with the linear head, each with `noah_` before it for the NOAH head, and the published
top-1 accuracy in percent, which is that of the raw weights, not of their moving average:

                               linear  NOAH
    deit_base_patch16_224      81.85   82.22
    deit_small_patch16_224     79.78   80.56
    deit_tiny_patch16_224      72.16   74.29
    deit_tiny_075_patch16_224  62.55   66.64
    deit_tiny_050_patch16_224  51.36   56.66

The original's hardware was 8 GPUs with 128 images each.
On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from ml_collections import ConfigDict

from noah_jax.recipes import deit_config

BACKBONES = (
    "deit_base_patch16_224",
    "deit_small_patch16_224",
    "deit_tiny_patch16_224",
    "deit_tiny_075_patch16_224",
    "deit_tiny_050_patch16_224",
)


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant, such as "noah_deit_tiny_patch16_224"."""
    config = deit_config(variant, BACKBONES)
    config.ema_decay = 0.99996
    return config
