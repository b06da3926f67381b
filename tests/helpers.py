"""Folders and small configurations that several tests use."""

import gzip
import json
import pathlib
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from noah_jax.config import default_config

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "data" / "golden"
# The environment of a process that has eight devices.
EIGHT_DEVICES = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
}


def original_models() -> list[str]:
    """The registered models that the original has, which are those of the golden files."""
    with gzip.open(GOLDEN / "models.json.gz", "rt") as file:
        return sorted(json.load(file))


def write_class_folders(
    root: pathlib.Path, suffix: str, size: Callable[[np.random.RandomState], tuple[int, ...]]
) -> None:
    """Writes class folders with images of three classes: `train/` with 3 x 20, `val/` with 3 x 7.

    Args:
      root: The folder to write into.
      suffix: The format of the images, such as "png".
      size: Draws height and width of an image.
    """
    random = np.random.RandomState(0)
    for split, count in (("train", 20), ("val", 7)):
        for class_index, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 120, (*size(random), 3), np.uint8)
                pixels[..., class_index] += 100
                Image.fromarray(pixels).save(folder / f"{i:02}.{suffix}")


def make_tiny_config(class_folders: str) -> ConfigDict:
    """Makes the configuration of a run of 12 steps with augmentation, dropout and an EMA."""
    config = default_config()
    config.model.name = "noah_resnet18"
    config.model.image_size = 28
    config.model.stem = "small"
    config.model.width = 4
    config.model.batch_norm_group = 4
    config.model.head_num = 2
    config.model.head_drop_rate = 0.3
    config.dataset = class_folders
    config.data.crop = "pad"
    config.data.num_threads = 2
    config.smoothing = 0.1
    config.erase_prob = 0.5
    config.mixup = 0.8
    config.cutmix = 1.0
    config.mix_group = 4
    config.ema_decay = 0.9
    config.batch_size = 8
    config.eval_batch_size = 8
    config.epochs = 1.6
    config.log_every = 5
    config.eval_every = 6
    config.checkpoint_every = 3
    config.keep_checkpoints = 10
    config.optim.learning_rate = 0.05
    config.compilation_cache = ""
    return config


def make_multi_label_config(csv_folder: str) -> ConfigDict:
    """Makes the configuration of a run of 80 steps on images with several labels, with an EMA."""
    config = make_tiny_config(f"csv:{csv_folder}")
    config.loss = "asymmetric"
    config.smoothing = config.erase_prob = config.mixup = config.cutmix = 0.0
    config.mix_group = None
    config.model.head_drop_rate = 0.0
    config.data.flip = False
    config.batch_size = 10
    config.model.batch_norm_group = 10
    config.epochs = 16.0
    config.eval_every = config.checkpoint_every = 100
    return config
