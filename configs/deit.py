"""DeiT on ImageNet-1k with either head: the original's recipe, 300 epochs.

    python -m noah_jax.train --config configs/deit.py:noah_deit_tiny_patch16_224 --workdir DIR

Variants are the names below, and with `noah_` before them for the NOAH head. The published
top-1 accuracy in percent:

                               linear  NOAH
    deit_base_patch16_224      81.85   82.22
    deit_small_patch16_224     79.78   80.56
    deit_tiny_patch16_224      72.16   74.29
    deit_tiny_075_patch16_224  62.55   66.64
    deit_tiny_050_patch16_224  51.36   56.66

The original's hardware was 8 GPUs, 128 images each, which is how many share a draw of mixup or
cutmix, here too on any number of devices. The published accuracy is that of the raw weights, not
of their moving average.

On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from noah_jax.config import imagenet_config

BACKBONES = (
    "deit_base_patch16_224",
    "deit_small_patch16_224",
    "deit_tiny_patch16_224",
    "deit_tiny_075_patch16_224",
    "deit_tiny_050_patch16_224",
)


def get_config(variant: str = ""):
    """The configuration of a variant, such as "noah_deit_tiny_patch16_224"."""
    config = imagenet_config(variant, BACKBONES, noah_drop_rate=0.1)
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
    config.ema_decay = 0.99996

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
