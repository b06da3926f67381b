"""Small transformers and MLPs on the embedded sample of Fashion-MNIST, with either head.

    python -m noah_jax.train --config configs/sample.py:noah_deit --workdir runs/noah_deit

The variants deit and mixer have the linear head, noah_deit and noah_mixer the NOAH head; both
share seed, data order and everything but the head. Patches of 7 x 7 pixels leave a final map of
4 x 4 positions. A small ResNet is in `configs/quickstart.py`.
"""

from ml_collections import ConfigDict

from noah_jax.config import sample_config
from noah_jax.errors import InputError

_BACKBONES = {
    "deit": ("deit_tiny_patch16_224", {"num_heads": 4}),
    "mixer": ("mixer_b16_224", {}),
}


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant: a backbone, or `noah_` and a backbone."""
    backbone = variant.removeprefix("noah_")
    if backbone not in _BACKBONES:
        variants = [*_BACKBONES, *("noah_" + name for name in _BACKBONES)]
        raise InputError(f"sample has the variants {', '.join(variants)}, got {variant!r}")
    config = sample_config()
    name, arguments = _BACKBONES[backbone]
    config.model.name = name if variant == backbone else "noah_" + name
    config.model.patch_size = 7
    config.model.width = 64
    config.model.depth = 2
    config.model.update(arguments)

    config.batch_size = 64

    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.optim.warmup_epochs = 1.0
    config.optim.weight_decay = 0.05
    return config
