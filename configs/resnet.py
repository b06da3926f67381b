"""ResNet on ImageNet-1k with either head: the original's recipe for 100 epochs of SGD.

    python -m noah_jax.train --config resnet.py:noah_resnet18 --workdir DIR

Published top-1 accuracy in percent; `noah_` before a name gives it the NOAH head:

               linear  NOAH
    resnet18   70.25   71.81
    resnet50   76.23   77.25
    resnet101  77.41   78.22
    resnet152  78.16   78.57

The original trained on 8 GPUs with 32 images each, without synchronised BatchNorm: statistics are
of 32 images, here too on any number of devices. On TPU and GPU add --config.model.dtype=bfloat16;
other images are --config.dataset.
"""

from ml_collections import ConfigDict

from noah_jax.recipes import CnnRecipe, cnn_config

BACKBONES = ("resnet18", "resnet50", "resnet101", "resnet152")


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant, such as "noah_resnet18"."""
    recipe = CnnRecipe(epochs=100.0, learning_rate=0.1, schedule="step", weight_decay=1e-4)
    return cnn_config(variant, BACKBONES, recipe, noah_drop_rate=0.1)
