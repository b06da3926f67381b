"""The recipes that several configurations share; `configs/` completes them.

They are the original's for ImageNet-1k, and those of ASL, ML-Decoder and CSRA for images with
several labels.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from noah_jax.config import default_config, imagenet_config
from noah_jax.errors import InputError, did_you_mean


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


class _Backbone(NamedTuple):
    """A backbone of the multi-label recipes: its registered name and the images' side in pixels."""

    name: str
    image_size: int


MULTI_LABEL_BACKBONES = {
    "resnet101_448": _Backbone("resnet101", 448),
    "resnet101_576": _Backbone("resnet101", 576),
    "vit_large_224": _Backbone("vit_large_patch16_224", 224),
    "vit_large_384": _Backbone("vit_large_patch16_384", 384),
}
MULTI_LABEL_HEADS = ("noah", "csra", "ml_decoder")
_BY_SGD = "_sgd"


def multi_label_variants() -> list[str]:
    """Returns the variants of the multi-label recipes, such as "noah_resnet101_448_sgd"."""
    heads = ("", *(f"{head}_" for head in MULTI_LABEL_HEADS))
    recipes = ("", _BY_SGD)
    return [h + b + r for b in MULTI_LABEL_BACKBONES for h in heads for r in recipes]


def multi_label_config(variant: str, *, step_epochs: int) -> ConfigDict:
    """Returns a recipe for images with several labels, the same for every head.

    Without `_sgd` it is that of ML-Decoder, which is ASL's in 40 epochs (`train.py` in
    github.com/Alibaba-MIIL/ML_Decoder): Adam with one cycle, the asymmetric loss, an average of the
    weights, cutout and RandAugment. With `_sgd` it is CSRA's (`main.py` in
    github.com/Kevinz-code/CSRA): SGD, binary cross entropy, random crops and flips. Both resize
    whole images in the evaluation.

    Args:
      variant: A backbone with its image size, after a head and `_` for another than the linear
        head, before `_sgd` for that recipe.
      step_epochs: The number of epochs after which SGD's learning rate falls to a tenth.

    Raises:
      InputError: If there is no such variant.
    """
    variants = multi_label_variants()
    if variant not in variants:
        got = f"got {variant!r}{did_you_mean(variant, variants)}" if variant else "got none"
        raise InputError(
            "--config FILE:VARIANT needs one of the variants"
            f" {', '.join(MULTI_LABEL_BACKBONES)}, with {', '.join(MULTI_LABEL_HEADS)} and _ before"
            f" it or {_BY_SGD} after it, or without; {got}"
        )
    words = variant.removesuffix(_BY_SGD)
    head = next((head for head in MULTI_LABEL_HEADS if words.startswith(f"{head}_")), None)
    backbone = MULTI_LABEL_BACKBONES[words.removeprefix(f"{head}_")]
    config = default_config()
    config.model.name = backbone.name
    config.model.head = head
    config.model.image_size = backbone.image_size
    config.data.squash = True
    config.optim.weight_decay = 1e-4
    if variant.endswith(_BY_SGD):
        _add_csra_recipe(config, step_epochs)
    else:
        _add_ml_decoder_recipe(config)
    return config


def _add_ml_decoder_recipe(config: ConfigDict) -> None:
    config.epochs = 40.0
    config.batch_size = 56
    config.loss = "asymmetric"
    config.asymmetric.constant_focus = True
    config.ema_decay = 0.9997
    config.cutout = 0.5
    config.data.crop = "none"
    config.data.flip = False
    config.data.rand_augment.num_ops = 2
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "one_cycle"
    config.optim.one_cycle.pct_start = 0.2
    config.optim.decay_all = False


def _add_csra_recipe(config: ConfigDict, step_epochs: int) -> None:
    config.epochs = 30.0
    config.batch_size = 16
    config.loss = "sigmoid"
    config.data.area = (0.7, 1.0)
    config.optim.learning_rate = 0.01
    config.optim.param_groups = (("^head/", 10.0),)
    config.optim.schedule = "step"
    config.optim.step_epochs = tuple(float(epoch) for epoch in range(step_epochs, 30, step_epochs))
    config.optim.warmup_epochs = 2.0
    config.optim.decay_all = True
