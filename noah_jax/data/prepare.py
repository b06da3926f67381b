"""Writes a dataset as TFDS keeps it: ArrayRecord shards, features, label names; no TensorFlow.

A dataset is written to a folder beside its place, `.VERSION.partial`, which is renamed to
`VERSION` when everything is there, and each shard appears whole or not at all. A run that is
killed at any moment therefore leaves nothing that looks finished, and the next run writes only
the shards that are missing. The contents of a shard depend on the data alone: a resumed dataset
is byte for byte that of an undisturbed run.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from noah_jax.console import Work, say, working
from noah_jax.data.folders import FolderSource
from noah_jax.data.in_threads import in_threads
from noah_jax.data.shrunk import read_shrinking
from noah_jax.data.source import SAMPLE, ImageFiles
from noah_jax.data.tfds import CERTAIN_LABELS, MULTI_LABEL_FILE_NAME
from noah_jax.errors import InputError, NoahError, WriteError
from noah_jax.files import is_remote, whole, write_text
from noah_jax.paths import expand_home

IMAGES_PER_SHARD = 1250  # 140 MB of ImageNet's images; ImageNet has 1025 such shards
_PLAN = ".plan.json"
_FORMAT = tfds.core.FileFormat.ARRAY_RECORD
_RESUME = "the same command goes on from here"

Encode = Callable[[str, bytes, int], bytes]
EncodeLabels = Callable[[str, bytes, np.ndarray], bytes]


@dataclasses.dataclass(frozen=True)
class Split:
    """A split that is to be written.

    Attributes:
      name: Name of the split.
      num_images: Number of images that it must have.
      shards: For each shard a function that makes its records, serialised `tf.train.Example`s.
      origin: Describes the data that the records are made of. A run that resumes compares it.
      change: What becomes of each record, if the records are not written as they are. It is called
        in threads.
      compressed: Whether ArrayRecord compresses the records, which leaves JPEG files as large as
        they are.
    """

    name: str
    num_images: int
    shards: Sequence[Callable[[], Iterable[bytes]]]
    origin: str
    change: Callable[[bytes], bytes] | None = None
    compressed: bool = True


def describe_images(
    name: str, version: str, class_names: Sequence[str], *, homepage: str | None = None
) -> tuple[tfds.core.DatasetInfo, Encode]:
    """Describes a dataset with the features of TFDS's imagenet2012: `image`, `label`, `file_name`.

    Args:
      name: Name of the dataset.
      version: Its version.
      class_names: Names of its classes.
      homepage: URL of its home page.

    Returns:
      The dataset's description, and `encode(file_name, image, class_index)`, which makes a record
      with the image's bytes unchanged.
    """
    info, serialize = _describe(
        name,
        version,
        {
            "label": tfds.features.ClassLabel(names=list(class_names)),
            "file_name": tfds.features.Text(),
        },
        homepage=homepage,
    )

    def encode(file_name: str, image: bytes, class_index: int) -> bytes:
        return serialize(image, {"label": class_index, "file_name": file_name})

    return info, encode


def describe_labelled_images(
    name: str, version: str, class_names: Sequence[str], *, homepage: str | None = None
) -> tuple[tfds.core.DatasetInfo, EncodeLabels]:
    """Describes a dataset of images with several labels, with features named as in TFDS's voc.

    These are `image`, `labels`, `labels_no_difficult` and `image/filename`. A class that is in
    `labels` alone is ignored for an image.

    Args:
      name: Name of the dataset.
      version: Its version.
      class_names: Names of its classes.
      homepage: URL of its home page.

    Returns:
      The dataset's description, and `encode(file_name, image, labels)`, which makes a record with
      the image's bytes unchanged. The labels are 1, 0 or -1 (ignored), `[num_classes]`.
    """
    labels_feature = tfds.features.Sequence(tfds.features.ClassLabel(names=list(class_names)))
    info, serialize = _describe(
        name,
        version,
        {
            "labels": labels_feature,
            CERTAIN_LABELS: labels_feature,
            MULTI_LABEL_FILE_NAME: tfds.features.Text(),
        },
        homepage=homepage,
    )

    def encode(file_name: str, image: bytes, labels: np.ndarray) -> bytes:
        values = {
            "labels": np.flatnonzero(labels),
            CERTAIN_LABELS: np.flatnonzero(labels == 1),
            MULTI_LABEL_FILE_NAME: file_name,
        }
        return serialize(image, values)

    return info, encode


def _describe(
    name: str, version: str, labels: dict[str, Any], *, homepage: str | None
) -> tuple[tfds.core.DatasetInfo, Callable[[bytes, dict[str, Any]], bytes]]:
    """Describes a dataset of images with the features `labels`, the first for training.

    Returns:
      The dataset's description, and what makes a record of an image and the values of `labels`.
    """
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(encoding_format="jpeg"), **labels}
    )
    info = tfds.core.DatasetInfo(
        builder=DatasetIdentity(
            name=name, version=tfds.core.Version(version), data_dir="", module_name=__name__
        ),
        description=f"{name}, prepared by noah_jax with every image as it was stored.",
        features=features,
        supervised_keys=("image", next(iter(labels))),
        homepage=homepage,
        disable_shuffling=True,
    )
    serializer = ExampleSerializer(features.get_serialized_info())

    def serialize(image: bytes, values: dict[str, Any]) -> bytes:
        example = {"image": io.BytesIO(image), **values}
        proto = serializer.get_tf_example(features.encode_example(example))
        # Otherwise the order of the features in a record would be random.
        return proto.SerializeToString(deterministic=True)

    return info, serialize


def plan_folders(path: str, name: str) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """Plans a dataset made of class folders, `PATH/train/CLASS/image` and `PATH/val/...`.

    The splits (train, and those of val, validation and test that exist), the labels and the
    order of the images are those of the folders as `open_sources` reads them.

    Args:
      path: The folder.
      name: Name of the dataset.

    Raises:
      InputError: If `name` cannot be a dataset's name, or the folders do not fit.
    """
    check_name(name)
    root = epath.Path(expand_home(path))
    if not (root / "train").is_dir():
        raise InputError(f"{path} has no folder train/, with CLASS/image files in it")
    sources = {"train": FolderSource(root / "train")}
    class_names = sources["train"].class_names
    for split in ("val", "validation", "test"):
        if (root / split).is_dir():
            sources[split] = FolderSource(root / split, class_names)
    info, encode = describe_images(name, "1.0.0", class_names)
    return info, [folder_split(key, source, encode) for key, source in sources.items()]


def check_name(name: str) -> None:
    """Raises an InputError if a dataset cannot have this name."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name == SAMPLE:
        raise InputError(
            f"{name!r} is no name for a dataset; use lower case and _, such as my_images"
        )


def folder_split(name: str, source: FolderSource, encode: Encode) -> Split:
    """Plans a split with the images of class folders, in their order."""
    paths = [source.describe(index) for index in range(len(source))]
    names = "\n".join(os.path.relpath(path, source.name) for path in paths)
    checksum = hashlib.sha256(names.encode()).hexdigest()
    return file_split(name, source, encode, f"SHA-256 of their names {checksum}")


def file_split(
    name: str, source: ImageFiles, encode: Callable[[str, bytes, Any], bytes], origin: str
) -> Split:
    """Plans a split with the images of a source of files, in its order.

    Args:
      name: Name of the split.
      source: The images.
      encode: Makes a record of a file's name, an image and its label.
      origin: Tells the images from others of the same number.
    """

    def records(indices: Iterable[int]) -> Iterator[bytes]:
        for index in indices:
            image, label = source[index]
            yield encode(source.file_name(index), image, label)

    return Split(
        name,
        len(source),
        [functools.partial(records, part) for part in shard_parts(range(len(source)))],
        origin=f"{len(source):,} images, {origin}",
    )


def shard_parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    """Cuts a sequence into consecutive parts of about equal length, one for each shard."""
    count = -(-len(items) // IMAGES_PER_SHARD)
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(bounds)]


def prepare(
    info: tfds.core.DatasetInfo,
    splits: Sequence[Split],
    data_dir: str,
    *,
    tell: Callable[[str], None] = say,
) -> pathlib.Path:
    """Writes a dataset, or the part of it that an earlier run has not written.

    Args:
      info: Description of the dataset; its splits and its file format are filled in.
      splits: The splits to write.
      data_dir: A local folder, TFDS's `data_dir`.
      tell: Called with a line when the dataset is complete.

    Returns:
      The dataset's folder, `DATA_DIR/NAME/VERSION`.

    Raises:
      InputError: If something else is there, or a split has another number of images.
      WriteError: If the disk is full or cannot be written.
    """
    if is_remote(data_dir):
        raise InputError(
            f"{data_dir} is no local folder; prepare locally, then copy the dataset there"
        )
    target, partial = target_folder(info, data_dir), partial_folder(info, data_dir)
    if target.exists():
        _check_prepared(target, info, splits)
        tell(f"{target} is prepared already")
        return target
    with _write_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
        with lock(partial):
            _check_plan(partial, splits)
            info.set_file_format(_FORMAT, override=True, override_if_initialized=True)
            info.set_splits(
                tfds.core.splits.SplitDict([_write_split(info.name, s, partial) for s in splits])
            )
            info.write_to_directory(partial)
            partial.rename(target)
            (target / _PLAN).unlink()
    counts = ", ".join(f"{split.name} {split.num_images:,}" for split in splits)
    tell(f"{target} is complete: {counts}")
    return target


def target_folder(info: tfds.core.DatasetInfo, data_dir: str) -> pathlib.Path:
    """Returns the folder of a dataset, `DATA_DIR/NAME/VERSION`."""
    return pathlib.Path(expand_home(data_dir)) / info.full_name


def partial_folder(info: tfds.core.DatasetInfo, data_dir: str) -> pathlib.Path:
    """Returns the folder of a dataset that is not complete yet."""
    target = target_folder(info, data_dir)
    return target.with_name(f".{target.name}.partial")


def _check_prepared(
    target: pathlib.Path, planned: tfds.core.DatasetInfo, splits: Sequence[Split]
) -> None:
    """Checks that a folder holds the dataset that is to be written."""
    advice = "choose another --data-dir or remove it"
    if not (target / "dataset_info.json").is_file():
        raise InputError(f"{target} exists and is no prepared dataset; {advice}")
    # A run that is killed between its last two operations leaves the plan.
    (target / _PLAN).unlink(missing_ok=True)
    try:
        info = tfds.builder_from_directory(target).info
    except Exception as error:  # TFDS raises errors of many kinds for corrupt files
        raise InputError(f"{target} holds a dataset that cannot be read; {advice}") from error
    if info.file_format != _FORMAT:
        raise InputError(f"{target} holds a dataset in {info.file_format.value} format; {advice}")
    actual = {name: split.num_examples for name, split in info.splits.items()}
    expected = {split.name: split.num_images for split in splits}
    if actual != expected:
        raise InputError(f"{target} holds another dataset ({actual}, not {expected}); {advice}")
    for split in splits:
        images, wanted = (
            "the original images" if found is None else f"images {found.describe()}"
            for found in (read_shrinking(i.metadata, split.name) for i in (info, planned))
        )
        if images != wanted:
            raise InputError(
                f"{target} holds {images} in {split.name}, not {wanted}; choose another --name or"
                " --data-dir, or remove it"
            )


@contextlib.contextmanager
def _write_errors(partial: pathlib.Path) -> Iterator[None]:
    """Turns errors of the operating system into a WriteError that says how to go on."""
    try:
        yield
    except NoahError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"{partial} cannot be written ({reason}); {_RESUME}") from error


@contextlib.contextmanager
def lock(partial: pathlib.Path) -> Iterator[None]:
    """Holds a lock on a folder; the lock ends with the process, however that ends.

    Raises:
      InputError: If another process holds it.
    """
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is writing {partial}; wait for it or stop it") from error
        yield
    finally:
        os.close(descriptor)


def _check_plan(partial: pathlib.Path, splits: Sequence[Split]) -> None:
    """Checks that the shards of an earlier run are made of the same data."""
    plan = {split.name: [split.origin, len(split.shards)] for split in splits}
    path = partial / _PLAN
    if not path.exists():
        write_text(path, json.dumps(plan, indent=1))
    elif json.loads(path.read_text()) != plan:
        raise InputError(
            f"{partial} holds an unfinished dataset that was made of other data (see its {_PLAN});"
            " remove it or choose another --data-dir"
        )


def _write_split(name: str, split: Split, folder: pathlib.Path) -> tfds.core.SplitInfo:
    """Writes the shards of a split that are missing."""
    template = tfds.core.ShardedFileTemplate(
        dataset_name=name,
        split=split.name,
        data_dir=epath.Path(folder),
        filetype_suffix=_FORMAT.file_suffix,
    )
    paths = template.sharded_filepaths(len(split.shards))
    lengths = {}
    for index, path in enumerate(paths):
        if (length := _num_records(path)) is not None:
            lengths[index] = length
    if done := sum(lengths.values()):
        say(f"{split.name}: going on after {done:,} images")
    with working(f"writing {split.name}", split.num_images, done=done) as work:
        for index, records in enumerate(split.shards):
            if index not in lengths:
                written = in_threads(split.change, records()) if split.change else records()
                lengths[index] = _write_shard(paths[index], split, written, work)
    if (total := sum(lengths.values())) != split.num_images:
        raise InputError(
            f"{split.name} must have {split.num_images:,} images, {total:,} were found in"
            f" {split.origin}; nothing is finished: get the whole data, remove {folder} and start"
            " again"
        )
    return tfds.core.SplitInfo(
        name=split.name,
        shard_lengths=[lengths[index] for index in range(len(paths))],
        num_bytes=sum(path.stat().length for path in paths),
        filename_template=template,
    )


def _write_shard(path: epath.Path, split: Split, records: Iterable[bytes], work: Work) -> int:
    """Writes a shard, whole or not at all; returns its number of records."""
    options = "group_size:1" if split.compressed else "group_size:1,uncompressed"
    count = 0
    with whole(path) as partial:
        try:
            with contextlib.closing(ArrayRecordWriter(str(partial), options)) as writer:
                for record in records:
                    writer.write(record)
                    count += 1
                    work.advance()
        except RuntimeError as error:  # raised by the writer if the disk is full
            raise WriteError(f"{error}; {_RESUME}") from error
        if _num_records(partial) != count:
            raise WriteError(f"{path} was not written whole; is the disk full? {_RESUME}")
    return count


def _num_records(path: os.PathLike[str]) -> int | None:
    """Returns the number of records in a shard; `None` if it is missing or corrupt."""
    if not os.path.exists(path):
        return None
    try:
        reader = ArrayRecordReader(os.fspath(path))
        count = reader.num_records()
        reader.close()
    except RuntimeError:  # raised by the reader for a corrupt file
        return None
    return count
