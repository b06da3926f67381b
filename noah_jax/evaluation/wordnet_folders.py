"""Opens class folders that are named as ImageNet's classes are, all of them or a part.

ImageNet-A, -R and -Sketch have a folder `n01440764/` for each class, by its WordNet id; ImageNet-V2
has a folder `0/` to `999/`, by its place in ImageNet's order.
"""

import re
from collections.abc import Sequence

from etils import epath

from noah_jax import console
from noah_jax.data.folder_walk import first_names
from noah_jax.data.folders import FolderSource, folder_names
from noah_jax.data.source import Source
from noah_jax.data.sources import EVAL_SPLITS, data_folder
from noah_jax.data.split import unsplit_folder, without_training_images
from noah_jax.errors import InputError, UsageError, did_you_mean
from noah_jax.inference.description import imagenet_classes
from noah_jax.inference.trained import TrainedModel

IMAGENET = "imagenet"  # the value of --classes-of
_WORDNET_ID = re.compile(r"n\d{8}")


def wordnet_ids(trained: TrainedModel) -> list[str]:
    """Returns the WordNet id of each class of a model, in the order of its logits.

    They are the names of its classes where these are WordNet ids, as after a training on a part of
    ImageNet. Otherwise a model of 1,000 classes has those of ImageNet, in their order; a warning
    says so.

    Raises:
      UsageError: If the model was trained for several labels an image.
      InputError: If its classes are others.
    """
    if trained.multi_label:
        raise UsageError(
            f"--classes-of {IMAGENET} is for one label an image, and {trained.path} was trained for"
            " several"
        )
    names = trained.class_names or ()
    if names and all(map(_WORDNET_ID.fullmatch, names)):
        return list(names)
    if trained.model.num_classes == len(imagenet_classes()):
        if names:
            console.warn_once(
                f"the classes of {trained.path} are not called by WordNet ids, the first is"
                f" {names[0]}: they are taken for ImageNet's, in its order"
            )
        return list(imagenet_classes())
    first = f", the first is {names[0]}" if names else ""
    raise InputError(
        f"--classes-of {IMAGENET} needs ImageNet's 1,000 classes, or some that are called by their"
        f" WordNet ids; {trained.path} has {trained.model.num_classes} classes{first}"
    )


def root_folder(dataset: str | None) -> epath.Path:
    """Returns the folder that `--dataset` names.

    Raises:
      UsageError: If it names no folder.
      InputError: If the folder does not exist.
    """
    root = None if dataset is None else data_folder(dataset)
    if root is None:
        raise UsageError(f"--classes-of {IMAGENET} reads class folders: --dataset folder:PATH")
    return root


def open_wordnet_folders(
    root: epath.Path, trained: TrainedModel, split: str | None = None
) -> tuple[Source, tuple[int, ...]]:
    """Opens the class folders in a folder, or in its `val/` or the like.

    Args:
      root: The folder.
      trained: The model.
      split: Name of the folder in it that has the class folders; by default the first that exists
        of validation, val and test, or none.

    Returns:
      The images, labelled by the model's class indices, and the indices of the classes that have a
      folder, in rising order.

    Raises:
      UsageError, InputError: See `wordnet_ids`. Also if a folder is named otherwise, or holds no
        images.
    """
    ids = wordnet_ids(trained)
    folder = _class_folders(root, split)
    names = folder_names(folder)
    known = ids
    if names and all(name.isdecimal() for name in names) and ids == list(imagenet_classes()):
        known = [str(index) for index in range(len(ids))]
    if unknown := sorted(set(names) - set(known)):
        raise InputError(
            f"{folder} holds {first_names(unknown)}; --classes-of {IMAGENET} needs folders that are"
            f" named as the {len(known):,} classes of {trained.path} are, such as"
            f" {known[0]}{did_you_mean(unknown[0], known)}"
        )
    present = set(names)
    classes = tuple(index for index, name in enumerate(known) if name in present)
    images = FolderSource(folder, known)
    return (without_training_images(images, trained.split) if trained.split else images), classes


def describe_classes(source: Source, classes: Sequence[int], num_classes: int) -> str:
    """Says in one line which classes the images have, and among which the model chooses."""
    if len(classes) == num_classes:
        return f"{source.name} has all {num_classes:,} classes of the model"
    return (
        f"{source.name} has {len(classes):,} of the model's {num_classes:,} classes: predictions"
        " and loss are restricted to these; `of all` has the accuracy among all"
    )


def _class_folders(root: epath.Path, split: str | None) -> epath.Path:
    if split is None and (whole := unsplit_folder(root)) is not None:
        return whole
    names = folder_names(root)
    split = split or next((name for name in EVAL_SPLITS if name in names), EVAL_SPLITS[0])
    if split not in names:
        raise InputError(f"{root} has no split {split!r}; it has {', '.join(names) or 'none'}")
    return root / split
