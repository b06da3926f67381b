"""A small ResNet with the NOAH head and a map of 14 x 14 positions, on the embedded sample.

    python -m noah_jax.train --config configs/fine_map.py --workdir runs/fine_map

It is the network of `configs/quickstart.py` at half its width, on images that are enlarged from 28
to 112 pixels. Its maps are finer than the quickstart's 4 x 4, for pictures by `noah-jax explain`.
It gets 85.05 % of the 2,000 test images right. Two CPU cores that were busy with other work gave it
12 minutes of their time.
"""

from ml_collections import ConfigDict

from noah_jax.config import sample_config


def get_config() -> ConfigDict:
    """Returns the configuration."""
    config = sample_config()
    config.model.name = "noah_resnet18"
    config.model.image_size = 112
    config.model.stem = "small"
    config.model.width = 4
    config.model.batch_norm_group = 8  # on one device each, with up to four

    config.epochs = 3.0
    config.batch_size = 32

    config.optim.learning_rate = 0.1
    config.optim.warmup_epochs = 0.5
    config.optim.weight_decay = 5e-4
    config.optim.decay_all = False
    config.optim.nesterov = True
    return config
