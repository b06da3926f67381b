"""MobileNetV3 on ImageNet-1k with either head: the original's recipe for 150 epochs of SGD.

    python -m noah_jax.train --config mobilenetv3.py:noah_mobilenetv3_small --workdir DIR

The original's hardware was 8 GPUs with 32 images each, and BatchNorm's statistics are of 32 images
on any number of devices. Weight decay spares biases and parameters of one dimension. Published
top-1 accuracy in percent; with `noah_` before its name a variant has the NOAH head:

                       linear  NOAH
    mobilenetv3_small  67.11   68.92

On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from ml_collections import ConfigDict

from noah_jax.recipes import CnnRecipe, cnn_config

BACKBONES = ("mobilenetv3_small",)


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant, such as "noah_mobilenetv3_small"."""
    recipe = CnnRecipe(epochs=150.0, learning_rate=0.05, schedule="cosine", weight_decay=4e-5)
    return cnn_config(variant, BACKBONES, recipe, noah_drop_rate=0.2)
