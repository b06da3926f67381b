"""A small ResNet on the embedded sample of Fashion-MNIST, with either head.

    python -m noah_jax.train --config configs/quickstart.py --workdir runs/quickstart
    python -m noah_jax.train --config configs/quickstart.py:linear --workdir runs/linear

Both variants share seed, data order and everything but the head. The small stem leaves a
final map of 4x4 positions, so that there is something to attend to.
"""

from ml_collections import ConfigDict

from noah_jax.config import sample_config
from noah_jax.errors import InputError


def get_config(variant: str = "noah") -> ConfigDict:
    """Returns the configuration of a variant: "noah" (the default) or "linear"."""
    if variant not in ("noah", "linear"):
        raise InputError(f"quickstart has the variants noah and linear, got {variant!r}")
    config = sample_config()
    config.model.name = "noah_resnet18" if variant == "noah" else "resnet18"
    config.model.stem = "small"
    config.model.width = 8
    config.model.batch_norm_group = 8  # on one device each, with up to four

    config.batch_size = 32

    config.optim.learning_rate = 0.1
    config.optim.warmup_epochs = 0.5
    config.optim.weight_decay = 5e-4
    config.optim.decay_all = False
    config.optim.nesterov = True
    return config
