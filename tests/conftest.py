"""Fixtures that several tests share."""

import contextlib
import gc
import io
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from noah_jax import console
from noah_jax.train import train
from noah_jax.train.trackers.libraries import TRACKERS
from tests.accelerators import asked_for
from tests.helpers import (
    GOLDEN,
    ROOT,
    RecordingTracker,
    make_multi_label_config,
    make_tiny_config,
    write_class_folders,
)
from tests.quick_compile import compile_quickly

# Tests look at what programs print, and a busy machine may take long for anything.
console.PATIENCE_SECONDS = 3600.0

# Keeps compiled programs between the tests of one session, and between sessions; the environment
# is for the programs that tests start.
CACHE = {
    "jax_compilation_cache_dir": str(ROOT / ".pytest_cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.2,
}
for key, value in CACHE.items():
    jax.config.update(key, value)
    os.environ[key.upper()] = str(value)

# Programs are compiled as a user's are in these rooms and in tests with the mark `optimised`: those
# that look at what the compiler made, or that compare with the original's numbers. All others are
# compiled quickly, see tests/quick_compile.py.
OPTIMISED_ROOMS = ("accelerators", "aot", "compile", "parity")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Runs `pytest -m gpu` and `-m tpu` in one process: several would share the device."""
    if asked_for(config):
        config.option.numprocesses = 0


def pytest_configure(config):
    """Lets `pytest -m gpu` and `-m tpu` see the accelerators; all other tests run on the CPU."""
    if asked_for(config):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    else:  # the environment, for the programs that tests start
        jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))


def pytest_addoption(parser):
    parser.addoption(
        "--optimised", action="store_true", help="optimise the compiled programs of all tests"
    )
    parser.addoption(
        "--golden", default=GOLDEN, type=pathlib.Path, help="the folder of other golden vectors"
    )


def _optimised(item) -> bool:
    room = item.path.relative_to(ROOT / "tests").parts[0]
    return room in OPTIMISED_ROOMS or item.get_closest_marker("optimised") is not None


def pytest_collection_modifyitems(items):
    """Puts the tests with optimised programs last, so that a process changes over once."""
    items.sort(key=_optimised)


def pytest_collection_finish():
    """Keeps the garbage collector from searching all imported modules again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Compiles a test's programs with XLA's optimisations or without."""
    compile_quickly(not (item.config.option.optimised or _optimised(item)))


@pytest.fixture
def golden(request) -> pathlib.Path:
    """The folder with the golden vectors."""
    return request.config.getoption("golden")


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory) -> str:
    """Class folders with 28x28 images: `train/` holds 3 x 20 of them, `val/` 3 x 7."""
    root = tmp_path_factory.mktemp("folders")
    write_class_folders(root, "png", lambda random: (28, 28))
    return str(root)


@pytest.fixture(scope="session")
def tiny_run(class_folders, tmp_path_factory) -> str:
    """The folder of a finished run of 12 steps on the class folders: checkpoints 6 and 12."""
    config = make_tiny_config(class_folders)
    config.checkpoint_every = 6
    config.mixup = config.cutmix = config.erase_prob = 0.0
    config.mix_group = None
    config.optim.learning_rate = 0.005  # so small that no probability is 0 or 1
    workdir = str(tmp_path_factory.mktemp("tiny") / "run")
    train(config, workdir)
    return workdir


class WholeRun(NamedTuple):
    """A finished training: its configuration and folder, what it returned, printed and tracked."""

    config: ConfigDict
    workdir: pathlib.Path
    results: dict
    said: str
    tracker: RecordingTracker


@pytest.fixture(scope="session")
def whole_run(class_folders, tmp_path_factory) -> WholeRun:
    """A run of 12 steps with augmentation, dropout and an average; checkpoints 3, 6, 9 and 12."""
    config = make_tiny_config(class_folders)
    workdir = tmp_path_factory.mktemp("whole") / "whole"
    tracker, tracked = RecordingTracker(), config.copy_and_resolve_references()
    tracked.trackers = ("wandb",)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setitem(TRACKERS, "wandb", lambda: tracker)
        patch.setattr("noah_jax.train.loop.check_trackers", lambda names: None)
        results = train(tracked, str(workdir))
    return WholeRun(config, workdir, results, said.getvalue(), tracker)


@pytest.fixture(scope="session")
def csv_folder(tmp_path_factory) -> str:
    """The folder of `train.csv` and `val.csv`, which list 50 images each.

    An image is labelled `green`, `red`, both or neither, but the first one of each file `-green`.
    """
    root = tmp_path_factory.mktemp("csv")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        lines = ["image,labels"]
        for i in range(50):
            # The label `red` makes the left half of an image red, `green` the right half green.
            red, green = random.integers(0, 2, 2)
            pixels = random.integers(0, 60, (28, 28, 3)).astype(np.uint8)
            pixels[:, :14, 0] += 180 * np.uint8(red)
            pixels[:, 14:, 1] += 180 * np.uint8(green)
            name = f"{split}{i}.png"
            Image.fromarray(pixels).save(root / name)
            labels = [label for label, there in (("red", red), ("green", green)) if there]
            labels = ["-green"] if i == 0 else labels
            lines.append(f"{name},{';'.join(labels)}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return str(root)


@pytest.fixture
def multi_label_config(csv_folder):
    """The configuration of `make_multi_label_config` for the images of `csv_folder`."""
    return make_multi_label_config(csv_folder)


@pytest.fixture(scope="session")
def multi_label_run(csv_folder, tmp_path_factory) -> str:
    """The folder of a finished run of 80 steps on images with several labels."""
    workdir = str(tmp_path_factory.mktemp("multi_label") / "run")
    train(make_multi_label_config(csv_folder), workdir)
    return workdir


@pytest.fixture
def tiny_config(class_folders):
    """The configuration of `make_tiny_config` for the images of `class_folders`."""
    return make_tiny_config(class_folders)
