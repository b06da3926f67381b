"""PVT on ImageNet-1k with either head: the original's recipe, which is DeiT's, 300 epochs.

    python -m noah_jax.train --config pvt.py:noah_pvt_tiny --workdir DIR

There is no moving average of the weights. Published top-1 accuracy of the variants in percent;
with `noah_` before its name a variant has the NOAH head:

                  linear  NOAH
    pvt_tiny      75.10   76.51
    pvt_tiny_075  71.81   74.22
    pvt_tiny_050  65.33   68.50

The original trained on 8 GPUs with 128 images each.
On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from ml_collections import ConfigDict

from noah_jax.recipes import deit_config

BACKBONES = ("pvt_tiny", "pvt_tiny_075", "pvt_tiny_050")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant, such as "noah_pvt_tiny"."""
    return deit_config(variant, BACKBONES)
