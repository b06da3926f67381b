"""ShuffleNetV2 on ImageNet-1k with either head: the original's recipe, 240 epochs.

    python -m noah_jax.train --config configs/shufflenetv2.py:noah_shufflenetv2_100 --workdir DIR

Variants are the names below, and with `noah_` before them for the NOAH head. The published
top-1 accuracy in percent:

                      linear  NOAH
    shufflenetv2_100  69.43   70.72

The original's hardware was 8 GPUs, 128 images each, without synchronised BatchNorm: statistics of
128 images, here too on any number of devices. Weight decay spares biases and parameters of one
dimension.

On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from noah_jax.config import imagenet_config

BACKBONES = ("shufflenetv2_100",)


def get_config(variant: str = ""):
    """The configuration of a variant, such as "noah_shufflenetv2_100"."""
    config = imagenet_config(variant, BACKBONES)
    config.epochs = 240.0
    config.batch_size = 1024
    config.model.batch_norm_group = 128

    config.data.eval_resize = 256

    config.optim.learning_rate = 0.5
    config.optim.schedule = "linear"
    config.optim.weight_decay = 4e-5
    return config
