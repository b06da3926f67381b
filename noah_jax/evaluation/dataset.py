"""Opens the dataset to evaluate on: the one that the user names, or the training's own."""

import dataclasses
import os

from noah_jax.data.source import Source
from noah_jax.data.sources import data_folder, open_eval_source
from noah_jax.data.streaming.cache import DEFAULT_GIGABYTES, ShardCache
from noah_jax.errors import InputError, UsageError
from noah_jax.evaluation.label_files import open_labelled_folder, relabel
from noah_jax.evaluation.wordnet_folders import (
    describe_classes,
    open_wordnet_folders,
    root_folder,
    wordnet_ids,
)
from noah_jax.inference.trained import TrainedModel


@dataclasses.dataclass(frozen=True)
class DatasetChoice:
    """The images and labels that a user chooses; what is `None` comes from the checkpoint.

    Attributes:
      dataset: Name of the dataset, see `noah_jax.data.sources.open_sources`.
      data_dir: Folder in which TFDS keeps prepared datasets.
      split: Name of the split.
      labels: A CSV file with other labels, see `noah_jax.evaluation.label_files`.
      real_labels: The JSON file of ImageNet-ReaL, which adds a second top-1.
      classes_of: "imagenet" for folders that are named as ImageNet's classes are, see
        `noah_jax.evaluation.wordnet_folders`.
    """

    dataset: str | None = None
    data_dir: str | None = None
    split: str | None = None
    labels: str | None = None
    real_labels: str | None = None
    classes_of: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluationImages:
    """The images to evaluate one model on.

    Attributes:
      source: The images and labels.
      class_names: What files of predictions call the model's classes, in the order of the logits.
      classes: The classes that can be predicted, in rising order; `None` for all.
      root: The folder that holds the images, if a folder was named.
      about: A line for the user about the classes, if there is something to say.
    """

    source: Source
    class_names: tuple[str, ...]
    classes: tuple[int, ...] | None = None
    root: str | None = None
    about: str | None = None

    def image_name(self, index: int) -> str:
        """Returns the name of an image: its path below the folder, or what messages call it."""
        name = self.source.describe(index)
        return name if self.root is None else name.removeprefix(f"{self.root.rstrip('/')}/")


def open_images(choice: DatasetChoice, trained: TrainedModel) -> EvaluationImages:
    """Opens the images for one model, and finds the classes that it chooses from.

    Raises:
      UsageError, InputError: See `open_dataset`, and for `choice.classes_of` `wordnet_folders`.
    """
    if choice.classes_of is not None:
        root = root_folder(choice.dataset)
        source, classes = open_wordnet_folders(root, trained, choice.split)
        num_classes = trained.model.num_classes
        return EvaluationImages(
            source,
            tuple(wordnet_ids(trained)),
            None if len(classes) == num_classes else classes,
            os.fspath(root),
            describe_classes(source, classes, num_classes),
        )
    source = open_dataset(choice, trained)
    dataset = _completed(choice, trained).dataset
    folder = None if dataset is None else data_folder(dataset)
    return EvaluationImages(
        source,
        tuple(trained.class_names or map(str, range(trained.model.num_classes))),
        root=None if folder is None else os.fspath(folder),
    )


def open_dataset(choice: DatasetChoice, trained: TrainedModel) -> Source:
    """Opens the images and labels for one model.

    Raises:
      UsageError: If nothing says which dataset it is, or the labels are of another kind than the
        model's.
      InputError: If the dataset cannot be read or its classes are not the model's.
    """
    choice = _completed(choice, trained)
    if trained.multi_label and (choice.labels or choice.real_labels):
        raise UsageError(
            f"--labels and --real-labels give one label an image, and {trained.path} was trained"
            " for several"
        )
    classes = trained.class_names or [str(i) for i in range(trained.model.num_classes)]
    assert choice.dataset is not None  # by `_completed`
    if choice.labels:
        folder = open_labelled_folder(choice.dataset, choice.labels, classes)
        if folder is not None:
            return folder
    source = open_eval_source(
        choice.dataset,
        data_dir=choice.data_dir,
        split=choice.split,
        class_names=trained.class_names,
        trained_on=trained.split,
        cache=_cache(trained),
    )
    _check_kind(source, trained)
    if choice.labels:
        return relabel(source, choice.labels, classes)
    _check_classes(source, trained, list(classes))
    return source


def _cache(trained: TrainedModel) -> ShardCache:
    """Returns the cache of shards that the model's training had, or the usual one."""
    data = trained.config.get("data", {})
    return ShardCache(data.get("cache_dir"), data.get("cache_gb", DEFAULT_GIGABYTES))


def _completed(choice: DatasetChoice, trained: TrainedModel) -> DatasetChoice:
    """Returns the choice, with the dataset of the model's own training if the user names none."""
    if choice.dataset is not None:
        return choice
    if "dataset" not in trained.config:
        raise UsageError(f"{trained.path} does not say its dataset; --dataset is needed")
    data = trained.config["data"]
    return dataclasses.replace(
        choice,
        dataset=trained.config["dataset"],
        data_dir=choice.data_dir or data["dir"],
        split=choice.split or data["eval_split"],
    )


def _check_kind(source: Source, trained: TrainedModel) -> None:
    if source.multi_label == trained.multi_label:
        return
    raise InputError(
        f"{source.name} has several labels an image, and {trained.path} was not trained for"
        " that, or does not say so; choose another --dataset"
        if source.multi_label
        else f"{source.name} has one label for each image, and {trained.path} was trained for"
        " several; choose another --dataset"
    )


def _check_classes(source: Source, trained: TrainedModel, classes: list[str]) -> None:
    """Raises an InputError unless the dataset has the model's classes in the same order."""
    names = list(source.class_names)
    if len(names) == len(classes) and (trained.class_names is None or names == classes):
        return
    differing = [pair for pair in zip(classes, names, strict=False) if pair[0] != pair[1]]
    first = f", the first to differ are {' and '.join(differing[0])}" if differing else ""
    raise InputError(
        f"{source.name} has {len(names)} classes, {trained.path} has {len(classes)}{first};"
        " choose another --dataset, or give its labels with --labels"
    )
