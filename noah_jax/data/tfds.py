"""Image-classification datasets that TFDS has prepared, images as they are stored.

No TensorFlow is needed: TFDS reads formats with random access (ArrayRecord) without it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from noah_jax.data.shrunk import read_shrinking
from noah_jax.data.source import SAMPLE, Source, check_label
from noah_jax.data.streaming.cache import ShardCache
from noah_jax.data.streaming.records import ArrayRecords
from noah_jax.data.streaming.shards import shards_at
from noah_jax.errors import InputError, one_line
from noah_jax.files import is_remote
from noah_jax.paths import expand_home

_SAMPLE_DIR = os.path.join(os.path.dirname(__file__), "sample")
# VOC's labels without the objects that its authors call difficult.
CERTAIN_LABELS = "labels_no_difficult"
FILE_NAME = "file_name"  # as in imagenet2012
MULTI_LABEL_FILE_NAME = "image/filename"  # as in voc and coco


class _Split:
    """What all splits of TFDS datasets have in common.

    Attributes:
      name: Name of the split, for messages.
      shrinking: What `noah_jax.data.shrink` did to its images, if it did.
    """

    _file_name_feature: str

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, cache: ShardCache | None = None
    ):
        self.name = f"{builder.info.full_name}:{split}"
        self.shrinking = read_shrinking(builder.info.metadata, split)
        self._image = only_feature(builder.info.features, tfds.features.Image, self.name)
        records = _open_records(builder, split)
        self._records: Sequence[bytes] = records
        lengths = builder.info.splits[split].shard_lengths
        self.shard_lengths = tuple(lengths)
        if is_remote(builder.data_dir):
            shards = shards_at(builder.info.splits[split].filepaths)
            # TFDS's own cannot read from buckets.
            records.data_source = ArrayRecords(shards, lengths, cache or ShardCache())
            self.shard_set = records.data_source.shard_set

    def __len__(self) -> int:
        return len(self._records)

    def describe(self, index: int) -> str:
        return f"image {index} of {self.name}"

    def file_name(self, index: int) -> str:
        values = self._read(index)
        if self._file_name_feature not in values:
            raise InputError(f"{self.name} does not tell the names of its image files")
        return os.path.basename(values[self._file_name_feature].bytes_list.value[0].decode())

    def _read(self, index: int) -> Mapping[str, tf_feature_pb2.Feature]:
        """Returns the features of a record as they are stored, lists of bytes and of numbers.

        TFDS's own dictionary of all features takes 80 us more an image.
        """
        return tf_example_pb2.Example.FromString(self._records[index]).features.feature


class TfdsSource(_Split):
    """A split of a dataset whose images have one label each."""

    multi_label = False
    _file_name_feature = FILE_NAME

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, cache: ShardCache | None = None
    ):
        super().__init__(builder, split, cache)
        features = builder.info.features
        self._label = only_feature(features, tfds.features.ClassLabel, self.name)
        self.class_names = list(features[self._label].names)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        values = self._read(index)
        return values[self._image].bytes_list.value[0], values[self._label].int64_list.value[0]


class MultiLabelTfdsSource(_Split):
    """A split of a dataset whose images have several labels, such as `voc` and `coco`.

    The labels are the classes of an image's objects. Where the dataset has
    `labels_no_difficult`, as VOC has, a class whose objects in an image are all difficult is
    ignored for this image, as in VOC's own evaluation.
    """

    multi_label = True
    _file_name_feature = MULTI_LABEL_FILE_NAME

    def __init__(
        self, builder: tfds.core.DatasetBuilder, split: str, cache: ShardCache | None = None
    ):
        super().__init__(builder, split, cache)
        features = builder.info.features
        found = _find_label_list(features)
        if found is None:
            raise InputError(f"{self.name} has no list of labels; it has {', '.join(features)}")
        label_path, self.class_names = found
        self._labels = "/".join(label_path)
        self._has_certain_labels = CERTAIN_LABELS in features

    def __getitem__(self, index: int) -> tuple[bytes, np.ndarray]:
        values = self._read(index)
        present = np.asarray(values[self._labels].int64_list.value, np.int64)
        labels = np.zeros(len(self.class_names), np.int8)
        for label in np.unique(present):
            check_label(self.describe(index), int(label), len(labels))
        labels[present] = 1
        if self._has_certain_labels:
            labels[np.setdiff1d(present, values[CERTAIN_LABELS].int64_list.value)] = -1
        return values[self._image].bytes_list.value[0], labels


def open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the builder of a prepared dataset; prepares the dataset where TFDS can.

    Args:
      name: The embedded sample's name, or the name of a TFDS dataset.
      data_dir: Folder in which TFDS keeps prepared datasets; by default TFDS's own choice.

    Raises:
      InputError: If there is no such dataset, its files cannot be read, or preparing it failed.
    """
    if name == SAMPLE:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=_SAMPLE_DIR)
    data_dir = None if data_dir is None else expand_home(data_dir)
    where = data_dir or tfds.core.constants.DATA_DIR
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError):
        pass  # It is not prepared, or cannot be a name: the catalogue below tells which.
    except Exception as error:  # TFDS raises errors of many kinds for corrupt files
        reason = one_line(error, 200)
        raise InputError(f"{name} under {where} cannot be read: {reason}") from error
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise InputError(
            f"unknown dataset {name!r}: not the embedded {SAMPLE!r}, not prepared under {where},"
            " not in TFDS's catalogue, and not a folder"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # each dataset's preparation fails in ways of its own
        reason = one_line(error, 200)
        raise InputError(
            f"{name} is not prepared under {where} and preparing it failed:"
            f" {type(error).__name__}: {reason} (python -m noah_jax.prepare prepares imagenet2012;"
            " TFDS prepares many other datasets with TensorFlow only: pip install tensorflow"
            " importlib_resources where you prepare them)"
        ) from error
    return builder


def open_split(
    builder: tfds.core.DatasetBuilder, split: str, cache: ShardCache | None = None
) -> Source:
    """Opens a split of a prepared dataset, whose images have one label each or several.

    Args:
      builder: The dataset.
      split: Name of the split.
      cache: Keeps the shards of a dataset in a bucket.
    """
    features = builder.info.features
    single = any(isinstance(f, tfds.features.ClassLabel) for f in features.values())
    if not single and _find_label_list(features) is not None:
        return MultiLabelTfdsSource(builder, split, cache)
    return TfdsSource(builder, split, cache)


def _open_records(builder: tfds.core.DatasetBuilder, split: str) -> Any:
    """Returns the records of a split, serialised `tf.train.Example`s."""
    method = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        return builder.as_data_source(split, deserialize_method=method)
    except NotImplementedError as error:
        raise InputError(
            f"{builder.info.full_name}:{split} is stored as {builder.info.file_format.value}, which"
            " has no random access; convert it with `python -m noah_jax.prepare"
            f" --from-tfrecord {builder.data_dir} --data-dir NEW` and give --config.data.dir=NEW"
        ) from error


def _find_label_list(
    features: tfds.features.FeaturesDict,
) -> tuple[tuple[str, ...], list[str]] | None:
    """Finds a list of labels among the features, or in a list of objects.

    Returns:
      The keys that lead to it in a record, and the names of its classes; `None` if there is none.
    """
    class_label = tfds.features.ClassLabel
    lists = {k: f.feature for k, f in features.items() if isinstance(f, tfds.features.Sequence)}
    for key, feature in lists.items():
        if isinstance(feature, class_label) and key != CERTAIN_LABELS:
            return (key,), list(feature.names)
    for key, feature in lists.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            for inner_key, inner in feature.items():
                if isinstance(inner, class_label):
                    return (key, inner_key), list(inner.names)
    return None


def only_feature(features: tfds.features.FeaturesDict, kind: type, name: str) -> str:
    """Returns the key of the only feature of a kind.

    Raises:
      InputError: If the dataset of that name has none or several.
    """
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    if len(keys) != 1:
        raise InputError(
            f"{name} is not an image-classification dataset: it has {len(keys)} features of kind"
            f" {kind.__name__}, 1 is needed; it has {', '.join(features)}"
        )
    return keys[0]
