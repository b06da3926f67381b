"""A tiny run for the tests on several processes: mixup, EMA, BatchNorm groups, dropout."""

from conftest import make_tiny_config


def get_config():
    """The configuration; its data set must be given."""
    config = make_tiny_config("")
    config.data.crop = "random_resized"
    config.batch_size = config.eval_batch_size = 16
    config.epochs = 3.2  # 12 steps of the test's 60 images
    config.log_every = 1
    config.watchdog_seconds = 60.0
    return config
