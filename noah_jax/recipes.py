"""The original's ImageNet-1k recipes that several families share; `configs/` completes them."""

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from noah_jax.config import imagenet_config


class CnnRecipe(NamedTuple):
    """What differs between the recipes of convolutional networks.

    Attributes:
      epochs: Number of epochs.
      learning_rate: Peak learning rate.
      schedule: "cosine", "linear", or "step" (0.1 times the rate at epochs 30, 60 and 90).
      weight_decay: Weight decay.
      images_per_gpu: Images of a step on each of the original's 8 GPUs.
    """

    epochs: float
    learning_rate: float
    schedule: str
    weight_decay: float
    images_per_gpu: int = 32


def cnn_config(
    variant: str, backbones: Sequence[str], recipe: CnnRecipe, *, noah_drop_rate: float = 0.0
) -> ConfigDict:
    """Returns the recipe of a convolutional network: SGD, random crops and flips.

    The original trained on 8 GPUs without synchronised BatchNorm, so each of BatchNorm's
    statistics is that of one GPU's images, here too on any number of devices.

    Args:
      variant: One of `backbones` for the linear head, or `noah_` and one of them.
      backbones: The backbones that the calling file has recipes for.
      recipe: The values that differ between the families.
      noah_drop_rate: Dropout rate in the NOAH head; the linear head has no dropout.

    Raises:
      InputError: If the variant is none of these.
    """
    config = imagenet_config(variant, backbones, noah_drop_rate=noah_drop_rate)
    config.epochs = recipe.epochs
    config.batch_size = 8 * recipe.images_per_gpu
    config.model.batch_norm_group = recipe.images_per_gpu
    config.data.eval_resize = 256
    config.optim.learning_rate = recipe.learning_rate
    config.optim.schedule = recipe.schedule
    config.optim.weight_decay = recipe.weight_decay
    return config


def deit_config(variant: str, backbones: Sequence[str]) -> ConfigDict:
    """Returns DeiT's recipe, which PVT has too: AdamW, RandAugment, mixup, CutMix, erasing.

    The original trained on 8 GPUs with 128 images each, which is how many images share a draw of
    mixup or CutMix, here too on any number of devices.

    Args:
      variant: One of `backbones` for the linear head, or `noah_` and one of them.
      backbones: The backbones that the calling file has recipes for.

    Raises:
      InputError: If the variant is none of these.
    """
    config = imagenet_config(variant, backbones, noah_drop_rate=0.1)
    config.epochs = 300.0
    config.batch_size = 1024
    config.model.drop_path_rate = 0.1
    config.data.repeats = 3
    config.data.drop_last = True
    config.data.interpolation = "bicubic"
    config.data.eval_resize = 256
    config.data.rand_augment.num_ops = 2
    config.data.rand_augment.magnitude = 9.0
    config.data.rand_augment.magnitude_std = 0.5
    config.smoothing = 0.1
    config.erase_prob = 0.25
    config.mixup = 0.8
    config.cutmix = 1.0
    config.mix_group = 128
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3  # 5e-4 for every 512 images of a batch
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 5.0
    config.optim.warmup_learning_rate = 1e-6
    config.optim.lr_delay_epochs = 1  # the original's scheduler was called after each epoch
    config.optim.final_learning_rate = 1e-5
    config.optim.weight_decay = 0.05
    config.optim.epsilon = 1e-8
    return config
