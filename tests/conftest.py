"""What the tests share."""

import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from noah_jax.config import default_config
from noah_jax.train import train

GOLDEN = pathlib.Path(__file__).parent / "data" / "golden"

# Compiled programs are kept between the tests of one session, and between sessions.
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax")
)


def pytest_addoption(parser):
    parser.addoption("--golden", default=GOLDEN, type=pathlib.Path, help="other golden vectors")


@pytest.fixture
def golden(request) -> pathlib.Path:
    """The folder of the golden vectors."""
    return request.config.getoption("golden")


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory) -> str:
    """`train/` with 3 x 20 images and `val/` with 3 x 7 of 28x28 pixels, as class folders."""
    root = tmp_path_factory.mktemp("folders")
    random = np.random.RandomState(0)
    for split, count in (("train", 20), ("val", 7)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 120, (28, 28, 3), np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return str(root)


@pytest.fixture(scope="session")
def tiny_run(class_folders, tmp_path_factory) -> str:
    """The folder of a finished run of 12 steps on the class folders: checkpoints 6 and 12."""
    config = make_tiny_config(class_folders)
    config.model.depths = (1, 1, 1, 1)
    config.checkpoint_every = 6
    config.mixup = config.cutmix = config.erase_prob = 0.0
    config.mix_group = None
    config.optim.learning_rate = 0.005  # probabilities that are neither 0 nor 1
    workdir = str(tmp_path_factory.mktemp("tiny") / "run")
    train(config, workdir)
    return workdir


@pytest.fixture
def tiny_config(class_folders):
    """A run of 12 steps on the class folders that has everything: augmentation, dropout, EMA."""
    return make_tiny_config(class_folders)


def make_tiny_config(class_folders: str) -> ConfigDict:
    """See `tiny_config`."""
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
