"""ResNet on ImageNet-1k with either head: the original's recipe, 100 epochs.

    python -m noah_jax.train --config configs/resnet.py:noah_resnet18 --workdir DIR

Variants are the names below, and with `noah_` before them for the NOAH head. The published
top-1 accuracy in percent:

               linear  NOAH
    resnet18   70.25   71.81
    resnet50   76.23   77.25
    resnet101  77.41   78.22
    resnet152  78.16   78.57

The original's hardware was 8 GPUs, 32 images each, without synchronised BatchNorm: statistics of
32 images, here too on any number of devices.

On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from noah_jax.config import imagenet_config

BACKBONES = ("resnet18", "resnet50", "resnet101", "resnet152")


def get_config(variant: str = ""):
    """The configuration of a variant, such as "noah_resnet18"."""
    config = imagenet_config(variant, BACKBONES, noah_drop_rate=0.1)
    config.epochs = 100.0
    config.batch_size = 256
    config.model.batch_norm_group = 32

    config.data.eval_resize = 256

    config.optim.learning_rate = 0.1
    config.optim.schedule = "step"
    config.optim.step_epochs = (30.0, 60.0, 90.0)
    config.optim.weight_decay = 1e-4
    return config
