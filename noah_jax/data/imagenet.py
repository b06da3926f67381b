"""ImageNet-1k (ILSVRC 2012) as it is published: two tar files, or class folders.

Both come to the same set, TFDS's `imagenet2012`, image for image: classes in the order of
their WordNet ids (TFDS's, PyTorch's and the original's), their images in the order of the file
names. Two things differ from what TFDS itself prepares: images keep their bytes (TFDS turns 22
CMYK files and a PNG into RGB JPEG; here decoding does), and they are not shuffled, since
training takes them in an order of its own.
"""

import dataclasses
import functools
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import tensorflow_datasets as tfds
from etils import epath

from noah_jax.data.folders import FolderSource
from noah_jax.data.prepare import Encode, Split, describe_images, folder_split, shard_parts
from noah_jax.data.source import AbsentSource
from noah_jax.errors import InputError

NAME = "imagenet2012"
_TABLES = "datasets/imagenet2012"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a whole ImageNet has.

    Attributes:
      class_names: the WordNet ids, sorted.
      validation_labels: the WordNet id of `ILSVRC2012_val_00000001.JPEG` and so on.
      num_train: training images.
    """

    class_names: Sequence[str]
    validation_labels: Sequence[str]
    num_train: int


def imagenet_facts() -> Facts:
    """ImageNet's classes and validation labels, from the tables in TFDS's package.

    Raises:
      ValueError: if the package lacks them.
    """
    tables = []
    for file in ("labels.txt", "validation_labels.txt"):
        path = tfds.core.tfds_path(f"{_TABLES}/{file}")
        if not path.is_file():
            raise InputError(
                f"the tensorflow_datasets package lacks {_TABLES}/{file}, which the validation"
                " images' labels come from; pip install tensorflow-datasets==4.9.10"
            )
        tables.append(path.read_text().split())
    return Facts(*tables, num_train=1_281_167)


def absent_imagenet() -> tuple[AbsentSource, AbsentSource]:
    """ImageNet's training and validation split where the images are not there."""
    facts = imagenet_facts()
    return (
        AbsentSource(f"{NAME}:train", facts.class_names, facts.num_train),
        AbsentSource(f"{NAME}:validation", facts.class_names, len(facts.validation_labels)),
    )


def plan_tars(
    train_tar: str, val_tar: str, facts: Facts
) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """ImageNet from `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`.

    The images go from the tar files straight into shards. A class is a shard of the training
    split: its tar within the tar is found without reading those before it.

    Raises:
      ValueError: if a file is missing, truncated or damaged, or has other members.
    """
    info, encode = _describe(facts)
    return info, [_train_split(train_tar, encode, facts), _val_split(val_tar, encode, facts)]


def plan_imagenet_folders(path: str, facts: Facts) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """ImageNet from `PATH/train/WORDNET_ID/*.JPEG` and `PATH/val/...` (or `validation`).

    Raises:
      ValueError: if the folders do not fit, or the classes or counts are not ImageNet's.
    """
    info, encode = _describe(facts)
    root = epath.Path(path).expanduser()
    val = "val" if (root / "val").is_dir() else "validation"
    splits = []
    for folder, name, count in (
        ("train", "train", facts.num_train),
        (val, "validation", len(facts.validation_labels)),
    ):
        if not (root / folder).is_dir():
            raise InputError(f"{path} has no folder {folder}/, with WORDNET_ID/image files in it")
        source = FolderSource(root / folder)
        _check_classes(source.name, source.class_names, facts)
        _check_count(source.name, "images", count, len(source))
        splits.append(folder_split(name, source, encode))
    return info, splits


def _describe(facts: Facts) -> tuple[tfds.core.DatasetInfo, Encode]:
    return describe_images(NAME, "5.1.0", facts.class_names, homepage="https://image-net.org/")


def _train_split(path: str, encode: Encode, facts: Facts) -> Split:
    with _open(path) as file:
        tars = _members(file, path)
    _check_classes(path, [name.removesuffix(".tar") for name in tars], facts)

    def records(label: int) -> Iterator[bytes]:
        name = f"{facts.class_names[label]}.tar"
        with _open(path) as file:
            images = _members(file, f"{name} in {path}", tars[name])
            for file_name, where in images.items():
                yield encode(file_name, _read(file, where), label)

    return Split(
        "train",
        facts.num_train,
        [functools.partial(records, label) for label in range(len(facts.class_names))],
        origin=_origin(path),
    )


def _val_split(path: str, encode: Encode, facts: Facts) -> Split:
    with _open(path) as file:
        members = _members(file, path)
    expected = [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(len(facts.validation_labels))]
    _check_count(path, "images", len(expected), len(members))
    if missing := sorted(set(expected) - set(members)):
        raise InputError(f"{path} lacks {missing[0]}; get the file again")
    labels = {name: label for label, name in enumerate(facts.class_names)}
    images = sorted(
        (labels[wordnet_id], name)
        for name, wordnet_id in zip(expected, facts.validation_labels, strict=True)
    )

    def records(part: Sequence[tuple[int, str]]) -> Iterator[bytes]:
        with _open(path) as file:
            for label, name in part:
                yield encode(name, _read(file, members[name]), label)

    return Split(
        "validation",
        len(images),
        [functools.partial(records, part) for part in shard_parts(images)],
        origin=_origin(path),
    )


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); the tar files are to be had from"
            " https://image-net.org/download-images after registration"
        ) from error


def _members(
    file: BinaryIO, what: str, within: tuple[int, int] | None = None
) -> dict[str, tuple[int, int]]:
    """The files in a tar file, or in one that lies within a tar file, sorted by name.

    Args:
      file: the file, open.
      what: what it is, for messages.
      within: where the tar file starts and ends; by default it is the whole file.

    Returns:
      Where each starts and ends in `file`.

    Raises:
      ValueError: if there are none or the tar file is truncated or damaged.
    """
    start, end = within or (0, file.seek(0, os.SEEK_END))
    found = {}
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while tar.offset < end and (member := tar.next()) is not None:
                member_end = member.offset_data + member.size
                if member_end > end:
                    raise InputError(
                        f"{what} is truncated: it has {end - start:,} bytes and {member.name} in it"
                        f" goes to byte {member_end - start:,}; get it again"
                    )
                if member.isfile():
                    found[os.path.basename(member.name)] = (member.offset_data, member_end)
            # A header that is damaged looks to `tarfile` like the end, which is made of zeros.
            file.seek(tar.offset)
            if tar.offset < end and file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise InputError(f"{what} is damaged at byte {tar.offset - start:,}; get it again")
    except tarfile.TarError as error:
        raise InputError(f"{what} is no tar file or damaged: {error}") from error
    if not found:
        raise InputError(f"{what} holds no files")
    return dict(sorted(found.items()))


def _read(file: BinaryIO, where: tuple[int, int]) -> bytes:
    start, end = where
    file.seek(start)
    return file.read(end - start)


def _origin(path: str) -> str:
    return f"{os.path.basename(path)}, {os.path.getsize(path):,} bytes"


def _check_classes(what: str, found: Sequence[str], facts: Facts) -> None:
    if unknown := sorted(set(found) - set(facts.class_names)):
        raise InputError(
            f"{what} holds {unknown[0]}, which is none of ImageNet's {len(facts.class_names):,}"
            " classes; another set is prepared with --folder PATH --name NAME"
        )
    _check_count(what, "classes", len(facts.class_names), len(found))


def _check_count(what: str, things: str, expected: int, found: int) -> None:
    if found != expected:
        raise InputError(
            f"{what} has {found:,} {things}, {expected:,} are expected: it is not whole; get it"
            " again (a part of ImageNet is prepared with --folder PATH --name NAME)"
        )
