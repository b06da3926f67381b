"""Opens the splits of a dataset by the dataset's name.

A name stands for the embedded sample, a TFDS dataset, class folders, CSV files, the folder of COCO
or PASCAL VOC, WebDataset shards, or a dataset of Hugging Face. TFDS takes seconds to import, so it
is imported only for its own datasets.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

from etils import epath

from noah_jax.data.coco import CocoSource, coco_splits
from noah_jax.data.csv_files import CsvSource
from noah_jax.data.folders import FolderSource, folder_names
from noah_jax.data.source import Source
from noah_jax.data.split import (
    FolderSplit,
    split_class_folder,
    unsplit_folder,
    without_training_images,
)
from noah_jax.data.streaming.cache import ShardCache
from noah_jax.data.streaming.shards import is_pattern
from noah_jax.data.voc import VocSource, voc_folder, voc_splits
from noah_jax.data.webdataset_layout import WebDataset
from noah_jax.errors import InputError
from noah_jax.paths import expand_home

_FOLDER = "folder:"
_CSV = "csv:"
_COCO = "coco:"
_VOC = "voc:"
_WDS = "wds:"
_HF = "hf:"
_PREFIXES = (_CSV, _COCO, _VOC, _WDS, _HF)
EVAL_SPLITS = ("validation", "val", "test")


@dataclasses.dataclass(frozen=True)
class _Dataset:
    """The splits that a dataset's name leads to.

    Attributes:
      name: The dataset's name, for messages.
      splits: Names of the splits.
      open: Opens a split: its name, and the class names that class indices refer to (`None`
        for the split's own; TFDS's splits always have their own).
      takes_patterns: Whether the name of a split may be a pattern of files instead.
    """

    name: str
    splits: list[str]
    open: Callable[[str, Sequence[str] | None], Source]
    takes_patterns: bool = False

    def check(self, split: str) -> None:
        if split not in self.splits and not (self.takes_patterns and is_pattern(split)):
            has = ", ".join(self.splits) or "none"
            raise InputError(f"{self.name} has no split {split!r}; it has {has}")

    @property
    def default_eval_split(self) -> str | None:
        return next((split for split in EVAL_SPLITS if split in self.splits), None)


def open_sources(
    name: str,
    *,
    data_dir: str | None = None,
    train_split: str = "train",
    eval_split: str | None = None,
    eval_fraction: float = 0.2,
    remembered: FolderSplit | None = None,
    cache: ShardCache | None = None,
) -> tuple[Source, Source]:
    """Opens the training and the evaluation split of a dataset.

    Args:
      name: "fashion_mnist_sample" (embedded in this package); the name of a TFDS dataset;
        "folder:PATH" with `SPLIT/CLASS/image` or `CLASS/image` files, local or `gs://` (a path
        that starts with `/`, `.` or `~` needs no prefix); "csv:PATH" with `SPLIT.csv` files, see
        `CsvSource`; "coco:PATH" with COCO's annotations and images, see `CocoSource`; or
        "voc:PATH" with the folder of a year of PASCAL VOC, see `VocSource`; "wds:PLACE" with a
        folder of WebDataset shards or a pattern of them, see `noah_jax.data.webdataset_layout`; or
        "hf:NAME[@revision][:config]", see `HuggingFaceDataset`.
      data_dir: Folder in which TFDS keeps prepared datasets; by default TFDS's own choice.
      train_split: Name of the training split; for WebDataset shards also a pattern of them.
      eval_split: Name of the evaluation split, likewise; by default the first of validation, val
        and test that exists.
      eval_fraction: The fraction for evaluation of a folder of `CLASS/image` files, which
        `noah_jax.data.split` splits.
      remembered: An earlier split of such a folder, which goes on.
      cache: Where shards, or what was learnt of them, are kept.

    Raises:
      InputError: If there is no such dataset or split; the message says what there is.
    """
    dataset = _find_prefixed(name, cache)
    if train_split == "train" and eval_split is None and dataset is None:
        root = data_folder(name)
        whole = None if root is None else unsplit_folder(root)
        if whole is not None:
            return split_class_folder(whole, eval_fraction, remembered)
    dataset = dataset or _find_folders(name) or _find_tfds(name, data_dir, cache)
    if eval_split is None and name.startswith(_WDS) and is_pattern(name):
        raise InputError(
            f"{name} names the shards to train on; give data.eval_split a pattern of those to"
            " evaluate on"
        )
    eval_split = eval_split or dataset.default_eval_split or EVAL_SPLITS[0]
    dataset.check(train_split)
    dataset.check(eval_split)
    train = dataset.open(train_split, None)
    return train, dataset.open(eval_split, train.class_names)


def open_eval_source(
    name: str,
    *,
    data_dir: str | None = None,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    trained_on: FolderSplit | None = None,
    cache: ShardCache | None = None,
) -> Source:
    """Opens the evaluation split alone; a training split need not exist.

    Args:
      name: Name of the dataset, see `open_sources`. A folder may also hold the class folders
        themselves, `PATH/CLASS/image`, and a pattern of WebDataset shards names those to evaluate
        on.
      data_dir: Folder in which TFDS keeps prepared datasets.
      split: Name of the split; by default the first of validation, val and test that exists.
      class_names: Names of the classes that the class indices refer to; a folder may hold only
        some of them. By default the classes of the training split, else those that are there.
      trained_on: A split of class folders; of those that it split, its training images are left
        out.
      cache: Where shards, or what was learnt of them, are kept.

    Raises:
      InputError: If there is no such dataset or split; the message says what there is.
    """
    if (dataset := _find_prefixed(name, cache)) is not None:
        if split is None and name.startswith(_WDS) and is_pattern(name):
            split = dataset.splits[0]
        if class_names is None and name.startswith(_CSV) and "train" in dataset.splits:
            class_names = dataset.open("train", None).class_names
    elif (root := data_folder(name)) is not None:
        dataset = _folders_below(name, root)
        whole = unsplit_folder(root) if split is None else None
        if whole is not None:
            images = FolderSource(whole, class_names)
            return without_training_images(images, trained_on) if trained_on else images
        if class_names is None and "train" in dataset.splits:
            class_names = folder_names(root / "train")
    else:
        dataset = _find_tfds(name, data_dir, cache)
    split = split or dataset.default_eval_split or EVAL_SPLITS[0]
    dataset.check(split)
    return dataset.open(split, class_names)


def data_folder(name: str) -> epath.Path | None:
    """Returns the folder of class folders that a name stands for; `None` if it names others.

    Raises:
      InputError: If there is no such folder.
    """
    if name.startswith(_PREFIXES):
        return None
    folder = name.removeprefix(_FOLDER)
    starts = ("/", ".", "~")
    is_plain_name = folder == name and "://" not in name and not name.startswith(starts)
    if is_plain_name and not os.path.isdir(name):
        return None
    return _existing(folder)


def _find_prefixed(name: str, cache: ShardCache | None) -> _Dataset | None:
    """Finds the splits of a dataset whose name starts with what it is; `None` for others."""
    prefix = name[: name.find(":") + 1]
    if prefix not in _PREFIXES:
        return None
    if prefix == _WDS:
        shards = WebDataset(name.removeprefix(_WDS), cache or ShardCache())
        return _Dataset(name, shards.splits, shards.open, takes_patterns=True)
    if prefix == _HF:
        from noah_jax.data.hugging_face import HuggingFaceDataset

        loaded = HuggingFaceDataset(name.removeprefix(_HF))
        return _Dataset(name, loaded.splits, loaded.open)
    root = _existing(name.removeprefix(prefix))
    if prefix == _CSV:
        return _Dataset(
            name,
            sorted(path.stem for path in root.glob("*.csv")),
            lambda split, class_names: CsvSource(root / f"{split}.csv", class_names),
        )
    if prefix == _COCO:
        splits = coco_splits(root)
        return _Dataset(
            name,
            sorted(splits),
            lambda split, class_names: CocoSource(root, splits[split], class_names),
        )
    year = voc_folder(root)
    return _Dataset(
        name,
        voc_splits(year),
        lambda split, class_names: VocSource(year, split, class_names),
    )


def _find_folders(name: str) -> _Dataset | None:
    root = data_folder(name)
    return None if root is None else _folders_below(name, root)


def _folders_below(name: str, root: epath.Path) -> _Dataset:
    return _Dataset(
        name,
        folder_names(root),
        lambda split, class_names: FolderSource(root / split, class_names),
    )


def _find_tfds(name: str, data_dir: str | None, cache: ShardCache | None) -> _Dataset:
    from noah_jax.data.tfds import open_builder, open_split

    builder = open_builder(name, data_dir)
    return _Dataset(
        name,
        list(builder.info.splits),
        lambda split, class_names: open_split(builder, split, cache),
    )


def _existing(folder: str) -> epath.Path:
    root = epath.Path(expand_home(folder))
    if not root.is_dir():
        raise InputError(f"data folder {folder} does not exist")
    return root
