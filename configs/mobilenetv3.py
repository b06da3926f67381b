"""MobileNetV3 on ImageNet-1k with either head: the original's recipe, 150 epochs.

    python -m noah_jax.train --config configs/mobilenetv3.py:noah_mobilenetv3_small --workdir DIR

Variants are the names below, and with `noah_` before them for the NOAH head. The published
top-1 accuracy in percent:

                       linear  NOAH
    mobilenetv3_small  67.11   68.92

The original's hardware was 8 GPUs, 32 images each, without synchronised BatchNorm: statistics of
32 images, here too on any number of devices. Weight decay spares biases and parameters of one
dimension.

On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from noah_jax.config import imagenet_config

BACKBONES = ("mobilenetv3_small",)


def get_config(variant: str = ""):
    """The configuration of a variant, such as "noah_mobilenetv3_small"."""
    config = imagenet_config(variant, BACKBONES, noah_drop_rate=0.2)
    config.epochs = 150.0
    config.batch_size = 256
    config.model.batch_norm_group = 32

    config.data.eval_resize = 256

    config.optim.learning_rate = 0.05
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 4e-5
    return config
