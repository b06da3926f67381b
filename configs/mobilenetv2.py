"""MobileNetV2 on ImageNet-1k with either head: the original's recipe, 150 epochs.

    python -m noah_jax.train --config configs/mobilenetv2.py:noah_mobilenetv2_100 --workdir DIR

Variants are the names below, and with `noah_` before them for the NOAH head. The published
top-1 accuracy in percent:

                     linear  NOAH
    mobilenetv2_100  72.02   73.35
    mobilenetv2_075  69.65   71.44
    mobilenetv2_050  64.30   67.44
    mobilenetv2_035  59.62   63.40

The original's hardware was 8 GPUs, 32 images each, without synchronised BatchNorm: statistics of
32 images, here too on any number of devices.

On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from noah_jax.config import imagenet_config

BACKBONES = ("mobilenetv2_100", "mobilenetv2_075", "mobilenetv2_050", "mobilenetv2_035")


def get_config(variant: str = ""):
    """The configuration of a variant, such as "noah_mobilenetv2_100"."""
    config = imagenet_config(variant, BACKBONES, noah_drop_rate=0.2)
    config.epochs = 150.0
    config.batch_size = 256
    config.model.batch_norm_group = 32

    config.data.eval_resize = 256

    config.optim.learning_rate = 0.05
    config.optim.schedule = "cosine"
    config.optim.weight_decay = 4e-5
    return config
