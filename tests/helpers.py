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
EIGHT_DEVICES = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}


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


# The ids of COCO's categories have gaps; these have too, and are not in order.
COCO_CATEGORIES = {1: "person", 90: "toothbrush", 3: "car"}


def write_coco(root: pathlib.Path, year: str = "2017") -> None:
    """Writes 12 small training and 8 validation images with annotations in COCO's own format.

    The images of a split have the ids 1001, 1002, ... in falling order. Every fourth has no
    annotation, and the second has only a crowd. The left third of an image is bright where it shows
    a person, the middle where it shows a car, the right where it shows a toothbrush.
    """
    random = np.random.default_rng(int(year))
    for split, count in (("train", 12), ("val", 8)):
        folder = root / f"{split}{year}"
        folder.mkdir(parents=True)
        images, annotations = [], []
        for number in range(count, 0, -1):
            name = f"{number:012}.jpg"
            pixels = random.integers(0, 60, (30, 40, 3)).astype(np.uint8)
            images.append({"id": 1000 + number, "file_name": name, "height": 30, "width": 40})
            for position, category in enumerate((1, 3, 90)):
                if number % 4 == 0 or (number + position) % 3 == 0:
                    continue
                pixels[:, 13 * position : 13 * position + 13] += 150
                crowd = int(number == 2)
                outline = {"counts": [1, 2], "size": [30, 40]} if crowd else [[1.5, 2.0, 3.0, 4.0]]
                for _ in range(2):  # as two objects of a kind
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": 1000 + number,
                            "category_id": category,
                            "iscrowd": crowd,
                            "area": 702.25,
                            "bbox": [13.0 * position, 0.0, 13.0, 30.0],
                            "segmentation": outline,
                        }
                    )
            Image.fromarray(pixels).save(folder / name)
        categories = [
            {"id": key, "name": name, "supercategory": "thing"}
            for key, name in COCO_CATEGORIES.items()
        ]
        content = {
            "info": {"year": int(year)},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        file = root / f"annotations/instances_{split}{year}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def write_voc(root: pathlib.Path) -> None:
    """Writes 6 training and 4 test images with the lists of two classes, in VOC's own layout."""
    random = np.random.default_rng(0)
    for folder in ("ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for split, numbers in (("trainval", range(1, 7)), ("test", range(7, 11))):
        lines: dict[str, list[str]] = {"cat": [], "train": []}
        for number in numbers:
            pixels = random.integers(0, 255, (30, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"JPEGImages/{number:06}.jpg")
            for index, name in enumerate(lines):
                lines[name].append(f"{number:06} {(1, -1, 0)[(number + index) % 3]:2}\n")
        for name in lines:
            (root / f"ImageSets/Main/{name}_{split}.txt").write_text("".join(lines[name]))
        names = "".join(f"{number:06}\n" for number in numbers)
        (root / f"ImageSets/Main/{split}.txt").write_text(names)


def make_tiny_config(class_folders: str) -> ConfigDict:
    """Makes the configuration of a run of 12 steps with augmentation, dropout and an EMA."""
    config = default_config()
    config.model.name = "noah_resnet18"
    config.model.image_size = 28
    config.model.stem = "small"
    config.model.width = 4
    config.model.depths = (1, 1, 1, 1)
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


class RecordingTracker:
    """A tracker of experiments that remembers in `told` what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def start(self, run, known):
        self.told.append(("start", run.name, known))
        return known or "key-1"

    def write(self, step, values):
        self.told.append((step, dict(values)))

    def finish(self, *, finished):
        self.told.append(("finish", finished))
