"""Plans ImageNet-1k (ILSVRC 2012) as it is published: two tar files, or class folders.

Both become the same dataset, TFDS's `imagenet2012`, image for image: classes in the order of
their WordNet ids (as in TFDS, PyTorch and the original), images of a class in the order of their
file names. It differs from what TFDS itself prepares in two ways. Images keep their bytes (TFDS
turns 22 CMYK files and a PNG into RGB JPEG; here decoding does), and they are not shuffled,
because the training's sampler decides their order.
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
from noah_jax.paths import expand_home

NAME = "imagenet2012"
_TABLES = "datasets/imagenet2012"

ByteRange = tuple[int, int]  # start and end in a file


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The classes and the sizes of a complete ImageNet.

    Attributes:
      class_names: The WordNet ids, sorted.
      validation_labels: The WordNet ids of `ILSVRC2012_val_00000001.JPEG` and those after it.
      num_train: Number of training images.
    """

    class_names: Sequence[str]
    validation_labels: Sequence[str]
    num_train: int


def imagenet_metadata() -> Metadata:
    """Reads ImageNet's classes and validation labels from the tables in TFDS's package.

    Raises:
      InputError: If the package lacks them.
    """
    class_names, validation_labels = map(_read_table, ("labels.txt", "validation_labels.txt"))
    return Metadata(class_names, validation_labels, num_train=1_281_167)


def _read_table(file: str) -> list[str]:
    path = tfds.core.tfds_path(f"{_TABLES}/{file}")
    if not path.is_file():
        raise InputError(
            f"the tensorflow_datasets package lacks {_TABLES}/{file}, which has the classes and"
            " the validation images' labels; pip install tensorflow-datasets==4.9.10"
        )
    return path.read_text().split()


def absent_imagenet() -> tuple[AbsentSource, AbsentSource]:
    """Makes ImageNet's training and validation split for a machine without the images."""
    metadata = imagenet_metadata()
    return (
        AbsentSource(f"{NAME}:train", metadata.class_names, metadata.num_train),
        AbsentSource(f"{NAME}:validation", metadata.class_names, len(metadata.validation_labels)),
    )


def plan_tars(
    train_tar: str, val_tar: str, metadata: Metadata
) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """Plans ImageNet from `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`.

    The images go from the tar files straight into shards. Each class becomes a shard of the
    training split, because its tar file within the tar file can be read without those before it.

    Args:
      train_tar: Path of the training images.
      val_tar: Path of the validation images.
      metadata: Classes and sizes that the files must have.

    Raises:
      InputError: If a file is missing, truncated or corrupt, or has other members.
    """
    info, encode = _describe(metadata)
    return info, [
        _train_split(train_tar, encode, metadata),
        _val_split(val_tar, encode, metadata),
    ]


def plan_imagenet_folders(
    path: str, metadata: Metadata
) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """Plans ImageNet from `PATH/train/WORDNET_ID/*.JPEG` and `PATH/val/...` (or `validation`).

    Args:
      path: The folder.
      metadata: Classes and sizes that the folders must have.

    Raises:
      InputError: If the folders do not fit, or the classes or sizes are not ImageNet's.
    """
    info, encode = _describe(metadata)
    root = epath.Path(expand_home(path))
    val = "val" if (root / "val").is_dir() else "validation"
    splits = []
    for folder, name, count in (
        ("train", "train", metadata.num_train),
        (val, "validation", len(metadata.validation_labels)),
    ):
        if not (root / folder).is_dir():
            raise InputError(f"{path} has no folder {folder}/, with WORDNET_ID/image files in it")
        source = FolderSource(root / folder)
        _check_classes(source.name, source.class_names, metadata)
        _check_count(source.name, "images", count, len(source))
        splits.append(folder_split(name, source, encode))
    return info, splits


def _describe(metadata: Metadata) -> tuple[tfds.core.DatasetInfo, Encode]:
    return describe_images(NAME, "5.1.0", metadata.class_names, homepage="https://image-net.org/")


def _train_split(path: str, encode: Encode, metadata: Metadata) -> Split:
    with _open(path) as file:
        tars = _members(file, path)
    _check_classes(path, [name.removesuffix(".tar") for name in tars], metadata)

    def records(class_index: int) -> Iterator[bytes]:
        name = f"{metadata.class_names[class_index]}.tar"
        with _open(path) as file:
            images = _members(file, f"{name} in {path}", tars[name])
            for file_name, where in images.items():
                yield encode(file_name, _read(file, where), class_index)

    return Split(
        "train",
        metadata.num_train,
        [functools.partial(records, index) for index in range(len(metadata.class_names))],
        origin=_origin(path),
    )


def _val_split(path: str, encode: Encode, metadata: Metadata) -> Split:
    with _open(path) as file:
        members = _members(file, path)
    wordnet_ids = metadata.validation_labels
    expected = [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(len(wordnet_ids))]
    _check_count(path, "images", len(expected), len(members))
    if missing := sorted(set(expected) - set(members)):
        raise InputError(f"{path} lacks {missing[0]}; get the file again")
    class_indices = {name: index for index, name in enumerate(metadata.class_names)}
    images = sorted(
        (class_indices[wordnet_id], name)
        for name, wordnet_id in zip(expected, wordnet_ids, strict=True)
    )

    def records(part: Sequence[tuple[int, str]]) -> Iterator[bytes]:
        with _open(path) as file:
            for class_index, name in part:
                yield encode(name, _read(file, members[name]), class_index)

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


def _members(file: BinaryIO, name: str, within: ByteRange | None = None) -> dict[str, ByteRange]:
    """Lists the files in a tar file, or in a tar file that is stored within a tar file.

    Args:
      file: The open file.
      name: How messages call the tar file.
      within: Byte range of the tar file in `file`; by default it is the whole file.

    Returns:
      The byte range of each file in `file`, sorted by name.

    Raises:
      InputError: If there are no files, or the tar file is truncated or corrupt.
    """
    start, end = within or (0, file.seek(0, os.SEEK_END))
    members = {}
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while tar.offset < end and (member := tar.next()) is not None:
                member_end = member.offset_data + member.size
                if member_end > end:
                    raise InputError(
                        f"{name} is truncated: it has {end - start:,} bytes and {member.name} in it"
                        f" goes to byte {member_end - start:,}; get it again"
                    )
                if member.isfile():
                    members[os.path.basename(member.name)] = (member.offset_data, member_end)
            # `tarfile` takes a corrupt header for the end of the file, which is made of zeros.
            file.seek(tar.offset)
            if tar.offset < end and file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise InputError(f"{name} is corrupt at byte {tar.offset - start:,}; get it again")
    except tarfile.TarError as error:
        raise InputError(f"{name} is no tar file, or is corrupt: {error}") from error
    if not members:
        raise InputError(f"{name} holds no files")
    return dict(sorted(members.items()))


def _read(file: BinaryIO, where: ByteRange) -> bytes:
    start, end = where
    file.seek(start)
    return file.read(end - start)


def _origin(path: str) -> str:
    return f"{os.path.basename(path)}, {os.path.getsize(path):,} bytes"


def _check_classes(name: str, class_names: Sequence[str], metadata: Metadata) -> None:
    if unknown := sorted(set(class_names) - set(metadata.class_names)):
        raise InputError(
            f"{name} holds {unknown[0]}, which is none of ImageNet's"
            f" {len(metadata.class_names):,} classes; prepare another dataset with --folder PATH"
            " --name NAME"
        )
    _check_count(name, "classes", len(metadata.class_names), len(class_names))


def _check_count(name: str, things: str, expected: int, actual: int) -> None:
    if actual != expected:
        raise InputError(
            f"{name} has {actual:,} {things}, {expected:,} are expected: it is incomplete; get it"
            " again (prepare a part of ImageNet with --folder PATH --name NAME)"
        )
