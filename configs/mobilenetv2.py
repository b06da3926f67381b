"""MobileNetV2 on ImageNet-1k with either head: the original's recipe for 150 epochs of SGD.

    python -m noah_jax.train --config mobilenetv2.py:noah_mobilenetv2_100 --workdir DIR

The variants, each with `noah_` before it for the NOAH head, and the published top-1 accuracy in
percent:

                     linear  NOAH
    mobilenetv2_100  72.02   73.35
    mobilenetv2_075  69.65   71.44
    mobilenetv2_050  64.30   67.44
    mobilenetv2_035  59.62   63.40

BatchNorm's statistics are of 32 images, as on the original's 8 GPUs.
On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from ml_collections import ConfigDict

from noah_jax.recipes import CnnRecipe, cnn_config

BACKBONES = ("mobilenetv2_100", "mobilenetv2_075", "mobilenetv2_050", "mobilenetv2_035")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant, such as "noah_mobilenetv2_100"."""
    recipe = CnnRecipe(epochs=150.0, learning_rate=0.05, schedule="cosine", weight_decay=4e-5)
    return cnn_config(variant, BACKBONES, recipe, noah_drop_rate=0.2)
