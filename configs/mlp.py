"""MLP-Mixer and gMLP on ImageNet-1k with either head: the original's recipe, 300 epochs.

    python -m noah_jax.train --config mlp.py:noah_mixer_s16_224 --workdir DIR

A variant has the NOAH head with `noah_` before its name. The original's hardware was 8 GPUs with
192 images each, which is how many images share a draw of mixup or CutMix, here too on any number
of devices. The published top-1 accuracy, in percent, is that of the raw weights, not of their
moving average:

                       linear  NOAH
    mixer_b16_224      77.14   77.49
    mixer_s16_224      74.18   75.09
    mixer_s16_075_224  71.13   72.32
    mixer_s16_050_224  65.22   66.81
    gmlp_s16_224       79.65   79.95
    gmlp_ti16_224      72.05   73.39
    gmlp_ti16_075_224  65.95   67.71
    gmlp_ti16_050_224  54.99   56.89

On TPU and GPU add --config.model.dtype=bfloat16. Other images: --config.dataset.
"""

from ml_collections import ConfigDict

from noah_jax.config import imagenet_config

BACKBONES = (
    "mixer_b16_224",
    "mixer_s16_224",
    "mixer_s16_075_224",
    "mixer_s16_050_224",
    "gmlp_s16_224",
    "gmlp_ti16_224",
    "gmlp_ti16_075_224",
    "gmlp_ti16_050_224",
)


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant, such as "noah_mixer_s16_224"."""
    config = imagenet_config(variant, BACKBONES, noah_drop_rate=0.1)
    config.epochs = 300.0
    config.batch_size = 1536
    config.model.drop_rate = 0.02333
    config.model.drop_path_rate = 0.1

    config.data.drop_last = True
    config.data.ratio = (0.67, 1.5)
    config.data.interpolation = "random"
    config.data.eval_interpolation = "bicubic"
    config.data.eval_resize = 248
    config.data.rand_augment.num_ops = 3
    config.data.rand_augment.magnitude = 6.0
    config.data.rand_augment.magnitude_std = 1.0

    config.smoothing = 0.1
    config.mixup = 0.5
    config.cutmix = 1.0
    config.mix_group = 192
    config.ema_decay = 0.99992

    config.optim.name = "adamw"
    config.optim.learning_rate = 7e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 20.0
    config.optim.warmup_learning_rate = 1e-6
    config.optim.final_learning_rate = 1e-5
    config.optim.weight_decay = 0.067
    config.optim.epsilon = 1e-6
    config.optim.clip_grad_norm = 1.0
    return config
