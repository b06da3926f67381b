"""Writes a dataset as TFDS keeps it: ArrayRecord shards, features, label names; no TensorFlow.

A set is made in a folder beside its place, `.VERSION.partial`, which takes the name `VERSION`
when everything is there, and a shard has another name until it is whole. So a run that is
killed at any moment leaves nothing that looks finished, and the next one writes only the shards
that are missing. Which shard holds what depends on the data alone: a resumed set is byte for
byte that of an undisturbed run.
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

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tqdm import tqdm

from noah_jax.data.folders import FolderSource
from noah_jax.data.source import SAMPLE
from noah_jax.errors import InputError

IMAGES_PER_SHARD = 1250  # of ImageNet's average size: 140 MB, 1025 shards
_PLAN = ".plan.json"
_FORMAT = tfds.core.FileFormat.ARRAY_RECORD

Encode = Callable[[str, bytes, int], bytes]


@dataclasses.dataclass(frozen=True)
class Split:
    """A split that is to be written.

    Attributes:
      name: its name.
      num_images: how many images there must be.
      shards: for each shard what makes its records, serialised `tf.train.Example`s.
      origin: what the records are made of, to know it again when a run resumes.
    """

    name: str
    num_images: int
    shards: Sequence[Callable[[], Iterable[bytes]]]
    origin: str


def describe_images(
    name: str, version: str, class_names: Sequence[str], *, homepage: str | None = None
) -> tuple[tfds.core.DatasetInfo, Encode]:
    """A set with the features of TFDS's imagenet2012: `image`, `label` and `file_name`.

    Returns:
      The set's description, and `encode(file_name, image, label)`, which makes a record with
      the image's bytes as they are.
    """
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(class_names)),
            "file_name": tfds.features.Text(),
        }
    )
    info = tfds.core.DatasetInfo(
        builder=DatasetIdentity(
            name=name, version=tfds.core.Version(version), data_dir="", module_name=__name__
        ),
        description=f"{name}, prepared by noah_jax with every image as it was stored.",
        features=features,
        supervised_keys=("image", "label"),
        homepage=homepage,
        disable_shuffling=True,
    )
    serializer = ExampleSerializer(features.get_serialized_info())

    def encode(file_name: str, image: bytes, label: int) -> bytes:
        example = {"image": io.BytesIO(image), "label": label, "file_name": file_name}
        proto = serializer.get_tf_example(features.encode_example(example))
        return proto.SerializeToString(deterministic=True)  # or a map's order is by chance

    return info, encode


def plan_folders(path: str, name: str) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """Class folders, `PATH/train/CLASS/image` and `PATH/val/...`, as a set of another name.

    The splits (train, and what there is of val, validation and test), the labels and the order
    of the images are those of the folders as `open_sources` reads them.

    Raises:
      ValueError: if `name` is no name for a set or the folders do not fit.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name == SAMPLE:
        raise InputError(f"{name!r} is no name for a set; use lower case and _, such as my_images")
    root = epath.Path(path).expanduser()
    if not (root / "train").is_dir():
        raise InputError(f"{path} has no folder train/, with CLASS/image files in it")
    sources = {"train": FolderSource(root / "train")}
    class_names = sources["train"].class_names
    for split in ("val", "validation", "test"):
        if (root / split).is_dir():
            sources[split] = FolderSource(root / split, class_names)
    info, encode = describe_images(name, "1.0.0", class_names)
    return info, [folder_split(key, source, encode) for key, source in sources.items()]


def folder_split(name: str, source: FolderSource, encode: Encode) -> Split:
    """A split with the images of class folders, in their order."""
    paths = [source.describe(index) for index in range(len(source))]
    digest = hashlib.sha256("\n".join(os.path.relpath(p, source.name) for p in paths).encode())

    def records(indices: Iterable[int]) -> Iterator[bytes]:
        for index in indices:
            image, label = source[index]
            yield encode(os.path.basename(paths[index]), image, label)

    return Split(
        name,
        len(source),
        [functools.partial(records, part) for part in shard_parts(range(len(source)))],
        origin=f"{len(source):,} images, SHA-256 of their names {digest.hexdigest()}",
    )


def shard_parts(items: Sequence) -> list[Sequence]:
    """Consecutive parts of about equal length, one for a shard."""
    count = -(-len(items) // IMAGES_PER_SHARD)
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [items[start:end] for start, end in itertools.pairwise(bounds)]


def prepare(info: tfds.core.DatasetInfo, splits: Sequence[Split], data_dir: str) -> pathlib.Path:
    """Writes a set, or what an earlier run left to write, into TFDS's `data_dir`.

    Args:
      info: the set's description; its splits and file format are filled in.
      splits: what to write.
      data_dir: a local folder.

    Returns:
      The set's folder, `DATA_DIR/NAME/VERSION`.

    Raises:
      ValueError: if something else is there, or a split comes to another count of images.
      OSError: if the disk is full or cannot be written.
    """
    if "://" in data_dir:
        raise InputError(f"{data_dir} is no local folder; prepare locally, then copy the set there")
    target = pathlib.Path(data_dir).expanduser() / info.full_name
    if target.exists():
        _check_prepared(target, splits)
        print(f"{target} is prepared already", flush=True)
        return target
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _only_run(partial):
        _check_plan(partial, splits)
        info.set_file_format(_FORMAT, override=True, override_if_initialized=True)
        info.set_splits(
            tfds.core.splits.SplitDict([_write_split(info.name, s, partial) for s in splits])
        )
        info.write_to_directory(partial)
        partial.rename(target)
        (target / _PLAN).unlink()
    counts = ", ".join(f"{split.name} {split.num_images:,}" for split in splits)
    print(f"{target} is whole: {counts}", flush=True)
    return target


def _check_prepared(target: pathlib.Path, splits: Sequence[Split]) -> None:
    instead = "choose another --data-dir or remove it"
    if not (target / "dataset_info.json").is_file():
        raise InputError(f"{target} exists and is no prepared set; {instead}")
    (target / _PLAN).unlink(missing_ok=True)  # of a run killed after its last step but one
    try:
        info = tfds.builder_from_directory(target).info
    except Exception as error:  # whatever damaged files make TFDS raise
        raise InputError(f"{target} holds a set that cannot be read; {instead}") from error
    if info.file_format != _FORMAT:
        raise InputError(f"{target} holds a set in {info.file_format.value} format; {instead}")
    there = {name: split.num_examples for name, split in info.splits.items()}
    wanted = {split.name: split.num_images for split in splits}
    if there != wanted:
        raise InputError(f"{target} holds another set ({there}, not {wanted}); {instead}")


@contextlib.contextmanager
def _only_run(partial: pathlib.Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends."""
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
    """Makes sure that the shards that are there are of the same data."""
    plan = {split.name: [split.origin, len(split.shards)] for split in splits}
    path = partial / _PLAN
    if not path.exists():
        path.with_suffix(".new").write_text(json.dumps(plan, indent=1))
        path.with_suffix(".new").replace(path)
    elif json.loads(path.read_text()) != plan:
        raise InputError(
            f"{partial} holds an unfinished set that was made of other data (see its {_PLAN});"
            " remove it or choose another --data-dir"
        )


def _write_split(name: str, split: Split, folder: pathlib.Path) -> tfds.core.SplitInfo:
    template = tfds.core.ShardedFileTemplate(
        dataset_name=name,
        split=split.name,
        data_dir=epath.Path(folder),
        filetype_suffix=_FORMAT.file_suffix,
    )
    paths = template.sharded_filepaths(len(split.shards))
    lengths = [_num_records(path) for path in paths]  # None where there is work to do
    done = sum(length or 0 for length in lengths)
    if done:
        print(f"{split.name}: going on after {done:,} images", flush=True)
    with tqdm(
        total=split.num_images, initial=done, desc=split.name, unit=" images", mininterval=1
    ) as bar:
        for index, records in enumerate(split.shards):
            if lengths[index] is None:
                lengths[index] = _write_shard(paths[index], records(), bar)
    if sum(lengths) != split.num_images:
        raise InputError(
            f"{split.name} must have {split.num_images:,} images, {sum(lengths):,} were found in"
            f" {split.origin}; nothing is finished: get the whole data, remove {folder} and start"
            " again"
        )
    return tfds.core.SplitInfo(
        name=split.name,
        shard_lengths=lengths,
        num_bytes=sum(path.stat().length for path in paths),
        filename_template=template,
    )


def _write_shard(path: epath.Path, records: Iterable[bytes], bar: tqdm) -> int:
    """Writes a shard, whole or not at all; returns how many records it has."""
    partial = path.with_name(f"{path.name}.partial")
    count = 0
    try:
        with contextlib.closing(ArrayRecordWriter(os.fspath(partial), "group_size:1")) as writer:
            for record in records:
                writer.write(record)
                count += 1
                bar.update()
    except RuntimeError as error:  # the writer's word for a full disk
        raise OSError(f"{error}; the same command goes on from here") from error
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    if _num_records(partial) != count:
        raise OSError(f"{partial} was not written whole; is the disk full?")
    partial.replace(path)
    return count


def _num_records(path: epath.Path) -> int | None:
    """How many records a shard has; None if it is not there or damaged."""
    if not path.exists():
        return None
    try:
        reader = ArrayRecordReader(os.fspath(path))
        count = reader.num_records()
        reader.close()
    except RuntimeError:  # the reader's word for damage
        return None
    return count
