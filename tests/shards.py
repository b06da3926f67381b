"""Packs the images of class folders into shards and tables."""

import functools
import io
import pathlib
import tarfile
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import pytest

from noah_jax.data.prepare import Split, describe_images, prepare

Sample = tuple[str, Mapping[str, bytes]]  # its key, and its files by suffix


def write_tar(path: pathlib.Path, samples: Iterable[Sample]) -> None:
    """Writes a shard of WebDataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def folder_samples(folder: pathlib.Path) -> Iterator[Sample]:
    """Yields the images of class folders with their class indices."""
    for class_index, classes in enumerate(sorted(folder.iterdir())):
        for path in sorted(classes.iterdir()):
            files = {path.suffix[1:]: path.read_bytes(), "cls": str(class_index).encode()}
            yield f"{classes.name}/{path.stem}", files


def write_webdataset(root: pathlib.Path, class_folders: str, *, shards: int = 4) -> None:
    """Writes `train-0000.tar`, ..., `val-0000.tar`, ... and `classes.txt` of class folders."""
    folders = pathlib.Path(class_folders)
    for split in ("train", "val"):
        samples = list(folder_samples(folders / split))
        ends = [len(samples) * i // shards for i in range(shards + 1)]
        for i in range(shards):
            write_tar(root / f"{split}-{i:04}.tar", samples[ends[i] : ends[i + 1]])
    names = sorted(path.name for path in (folders / "train").iterdir())
    (root / "classes.txt").write_text("\n".join(names) + "\n")


def write_mixed_shards(root: pathlib.Path, class_folders: str, *, shards: int) -> None:
    """Writes class folders' images in a random order: `wds/`, and `tfds/mixed` as ArrayRecord."""
    folders = pathlib.Path(class_folders)
    random = np.random.RandomState(0)
    names = sorted(path.name for path in (folders / "train").iterdir())
    info, encode = describe_images("mixed", "1.0.0", names, homepage="")
    splits = []

    def records(part: list[Sample]) -> Iterator[bytes]:
        for key, files in part:
            yield encode(f"{key}.png", files["png"], int(files["cls"]))

    for split in ("train", "val"):
        samples = list(folder_samples(folders / split))
        samples = [samples[i] for i in random.permutation(len(samples))]
        ends = [len(samples) * i // shards for i in range(shards + 1)]
        parts = [samples[ends[i] : ends[i + 1]] for i in range(shards)]
        for i, part in enumerate(parts):
            write_tar(root / "wds" / f"{split}-{i:04}.tar", part)
        makers = [functools.partial(records, part) for part in parts]
        splits.append(Split(split, len(samples), makers, origin=""))
    (root / "wds" / "classes.txt").write_text("\n".join(names) + "\n")
    prepare(info, splits, str(root / "tfds"))


def write_tables(root: pathlib.Path, class_folders: str) -> None:
    """Writes `train-0.parquet` and `test-0.parquet` of class folders; skips without `datasets`."""
    datasets = pytest.importorskip("datasets")
    root.mkdir()
    folders = pathlib.Path(class_folders)
    names = sorted(path.name for path in (folders / "train").iterdir())
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    for split, name in (("train", "train"), ("val", "test")):
        samples = list(folder_samples(folders / split))
        columns = {
            "image": [{"bytes": files["png"], "path": f"{key}.png"} for key, files in samples],
            "label": [int(files["cls"]) for _, files in samples],
        }
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(root / f"{name}-0.parquet")
