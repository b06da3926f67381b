"""Plans COCO and PASCAL VOC, as they are published, for `noah_jax.data.prepare`."""

import re

import tensorflow_datasets as tfds
from etils import epath

from noah_jax.data.coco import CocoSource, coco_splits
from noah_jax.data.prepare import Split, check_name, describe_labelled_images, file_split
from noah_jax.data.record import fingerprint
from noah_jax.data.source import AbsentSource, ImageFiles
from noah_jax.data.voc import VocSource, voc_folder, voc_splits
from noah_jax.errors import InputError
from noah_jax.paths import expand_home

# The classes and the images of both splits, by the default names of what `plan_coco` and `plan_voc`
# plan.
_SIZES = {
    "coco2014": (80, {"train": 82_081, "val": 40_137}),
    "coco2017": (80, {"train": 117_266, "val": 4_952}),
    "voc2007": (20, {"trainval": 5_011, "test": 4_952}),
}

Plan = tuple[tfds.core.DatasetInfo, list[Split]]


def absent_labelled(name: str) -> tuple[AbsentSource, AbsentSource] | None:
    """Makes both splits of COCO or VOC for a machine without the images; their classes are numbers.

    Args:
      name: Name of the dataset.

    Returns:
      The training and the evaluation split; `None` if the dataset's sizes are not known.
    """
    if name not in _SIZES:
        return None
    num_classes, splits = _SIZES[name]
    classes = [str(index) for index in range(num_classes)]
    train, evaluation = (
        AbsentSource(f"{name}:{split}", classes, length, multi_label=True)
        for split, length in splits.items()
    )
    return train, evaluation


def plan_coco(path: str, *, name: str | None = None, year: str | None = None) -> Plan:
    """Plans a dataset of the images that COCO's annotation files list, with sets of labels.

    Its splits are `train`, and `val` if there are annotations of it.

    Args:
      path: The folder, see `CocoSource`.
      name: Name of the dataset; by default coco and the year, such as coco2014.
      year: The year, if the folder holds several.

    Raises:
      InputError: If the annotations or images do not fit, the year is missing, or `name` cannot
        be a dataset's name.
    """
    root = epath.Path(expand_home(path))
    splits = coco_splits(root)
    years = sorted(key.removeprefix("train") for key in splits if re.fullmatch(r"train\d+", key))
    split = splits.get("train" if year is None else f"train{year}")
    if split is None:
        choice = f"; choose of {', '.join(years)} with --year" if years else ""
        raise InputError(
            f"{path} has no single annotations/instances_train{year or 'YEAR'}.json{choice}"
        )
    year = split.removeprefix("train")
    name = name or f"coco{year}"
    check_name(name)
    train = CocoSource(root, split)
    sources: dict[str, ImageFiles] = {"train": train}
    if f"val{year}" in splits:
        sources["val"] = CocoSource(root, f"val{year}", train.class_names)
    return _plan(name, train.class_names, sources, "https://cocodataset.org/")


def plan_voc(path: str, *, name: str | None = None) -> Plan:
    """Plans a dataset of a year of PASCAL VOC, with sets of labels.

    Its splits are `trainval` and `test`, or `train` and `val` where test has no labels.

    Args:
      path: The folder, see `voc_folder`.
      name: Name of the dataset; by default the year's, such as voc2007.

    Raises:
      InputError: If the lists or images do not fit, or `name` cannot be a dataset's name.
    """
    root = voc_folder(epath.Path(expand_home(path)))
    name = name or root.name.lower()
    check_name(name)
    there = voc_splits(root)
    pairs = (("trainval", "test"), ("train", "val"))
    pair = next((pair for pair in pairs if set(pair) <= set(there)), None)
    if pair is None:
        raise InputError(
            f"{root} must have lists of trainval and test, or of train and val; it has"
            f" {', '.join(there) or 'none'}"
        )
    first = VocSource(root, pair[0])
    sources: dict[str, ImageFiles] = {pair[0]: first}
    sources[pair[1]] = VocSource(root, pair[1], first.class_names)
    return _plan(name, first.class_names, sources, "http://host.robots.ox.ac.uk/pascal/VOC/")


def _plan(name: str, class_names: list[str], sources: dict[str, ImageFiles], homepage: str) -> Plan:
    info, encode = describe_labelled_images(name, "1.0.0", class_names, homepage=homepage)
    return info, [
        file_split(split, source, encode, f"fingerprint {fingerprint(source)}")
        for split, source in sources.items()
    ]
