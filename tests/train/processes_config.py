"""Configures a small run for the tests on several processes: mixup, EMA, BatchNorm, dropout."""

from tests.helpers import make_tiny_config


def get_config():
    """The configuration; its data set must be given."""
    config = make_tiny_config("")
    config.data.crop = "random_resized"
    config.batch_size = config.eval_batch_size = 16
    config.epochs = 10.7  # 40 steps of the tests' 60 images
    config.optim.schedule = "constant"  # so that a longer run takes the same steps
    config.log_every = 1
    config.eval_every = 20
    config.checkpoint_every = 10
    return config
