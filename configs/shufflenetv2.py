"""ShuffleNetV2 on ImageNet-1k with either head: the original's recipe for 240 epochs of SGD.

    python -m noah_jax.train --config shufflenetv2.py:noah_shufflenetv2_100 --workdir DIR

Published top-1 accuracy in percent; with `noah_` before its name the variant has the NOAH head:

                      linear  NOAH
    shufflenetv2_100  69.43   70.72

The original trained on 8 GPUs with 128 images each, so BatchNorm's statistics are of 128 images, on
any number of devices. Weight decay spares biases and parameters of one dimension.
On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from ml_collections import ConfigDict

from noah_jax.recipes import CnnRecipe, cnn_config

BACKBONES = ("shufflenetv2_100",)


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant, such as "noah_shufflenetv2_100"."""
    recipe = CnnRecipe(240.0, 0.5, "linear", weight_decay=4e-5, images_per_gpu=128)
    return cnn_config(variant, BACKBONES, recipe)
