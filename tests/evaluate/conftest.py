"""A run whose classes are called by WordNet ids, and the logits of its model."""

import json
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from noah_jax import load_model

WORDNET_IDS = ("n01440764", "n01443537", "n01484850")


@pytest.fixture(scope="session")
def wordnet_run(tiny_run, tmp_path_factory) -> str:
    """A copy of the tiny run with other class names, which enlarges images to 32 pixels."""
    run = tmp_path_factory.mktemp("wordnet") / "run"
    shutil.copytree(tiny_run, run)
    for file, change in (
        ("model.json", lambda values: values.update(class_names=WORDNET_IDS)),
        ("config.json", lambda values: values["data"].update(eval_resize=32)),
    ):
        values = json.loads((run / file).read_text())
        change(values)
        (run / file).write_text(json.dumps(values))
    return str(run)


def logits_of(run: str, files: Sequence[pathlib.Path]) -> np.ndarray:
    """Computes the logits of images of 28 x 28 pixels without the evaluation's own code."""
    model, params, stats = load_model(run)
    images = np.stack([np.asarray(Image.open(file)) for file in files]) / 255
    images = (images - np.array(model.mean)) / np.array(model.std)
    return np.asarray(model.apply(params, stats, images.astype(np.float32), train=False)[0])


def copy_images(class_folders: str, root: pathlib.Path, classes: dict[int, str]) -> None:
    """Copies the evaluation images of some classes to folders of other names.

    Args:
      class_folders: The folder of the images.
      root: The folder to copy to.
      classes: Name of the new folder by class index.
    """
    for index, name in classes.items():
        shutil.copytree(f"{class_folders}/val/{('ant', 'bee', 'cat')[index]}", root / name)
