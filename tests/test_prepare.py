"""Preparing sets: from tar files, class folders and TFRecord files, whole or killed."""

import hashlib
import io
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile

import google_crc32c
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from conftest import GOLDEN

from noah_jax.data import imagenet, prepare, tfrecord
from noah_jax.data.decoding import decode
from noah_jax.data.sources import open_sources

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "prepare_imagenet.py"
CLASSES = ["n01440764", "n02105855", "n15075141"]
VAL_LABELS = ["n15075141", "n01440764", "n02105855", "n01440764", "n15075141"]
FACTS = imagenet.Facts(CLASSES, VAL_LABELS, num_train=9)
SHARD = "imagenet2012-train.array_record-00001-of-00003"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "IMAGES_PER_SHARD", 2)


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Among them a CMYK, a gray and a PNG one."""
    return [path.read_bytes() for path in sorted((GOLDEN / "images").iterdir())]


@pytest.fixture(scope="module")
def folders(photographs, tmp_path_factory) -> pathlib.Path:
    """The class folders of `FACTS`."""
    root = tmp_path_factory.mktemp("imagenet")
    for i in range(9):
        name = CLASSES[i % 3]
        path = root / "train" / name / f"{name}_{7 * i % 20}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photographs[i % 7])
    for i, name in enumerate(VAL_LABELS):
        path = root / "val" / name / f"ILSVRC2012_val_{i + 1:08}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photographs[-i])
    return root


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _tar(files: list[pathlib.Path]) -> bytes:
    """A tar file of files, last one first."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path in reversed(files):
            _add(tar, path.name, path.read_bytes())
    return out.getvalue()


@pytest.fixture(scope="module")
def tars(folders, tmp_path_factory) -> tuple[str, str]:
    """The same as two tar files, laid out as ImageNet's, in another order."""
    root = tmp_path_factory.mktemp("tars")
    train, val = root / "ILSVRC2012_img_train.tar", root / "ILSVRC2012_img_val.tar"
    with tarfile.open(train, "w") as tar:
        for name in reversed(CLASSES):
            _add(tar, f"{name}.tar", _tar(sorted((folders / "train" / name).iterdir())))
    val.write_bytes(_tar(sorted((folders / "val").glob("*/*"))))
    return str(train), str(val)


def _from_tars(tars, data_dir, facts=FACTS) -> pathlib.Path:
    return prepare.prepare(*imagenet.plan_tars(*tars, facts), str(data_dir))


def _digests(folder: pathlib.Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file()
    }


def _content(source) -> list[tuple[bytes, int]]:
    return [source[i] for i in range(len(source))]


def _assert_same_images(prepared: tuple, original: tuple) -> None:
    for a, b in zip(prepared, original, strict=True):
        assert a.class_names == b.class_names
        assert _content(a) == _content(b)
    np.testing.assert_array_equal(
        np.asarray(decode(prepared[0][0][0])), np.asarray(decode(original[0][0][0]))
    )


def test_tars_and_folders_come_to_the_same_set(tars, folders, tmp_path):
    prepared = _from_tars(tars, tmp_path / "tars")
    assert prepared == tmp_path / "tars/imagenet2012/5.1.0"
    _assert_same_images(
        open_sources("imagenet2012", data_dir=str(tmp_path / "tars")), open_sources(str(folders))
    )
    plan = imagenet.plan_imagenet_folders(str(folders), FACTS)
    prepare.prepare(*plan, str(tmp_path / "folders"))
    _assert_same_images(
        open_sources("imagenet2012", data_dir=str(tmp_path / "folders")),
        open_sources(str(folders)),
    )


def test_the_set_is_what_tfds_makes_of_imagenet(tars, tmp_path):
    folder = _from_tars(tars, tmp_path)
    for info in (
        tfds.core.read_only_builder.builder_from_files("imagenet2012", data_dir=tmp_path).info,
        tfds.builder("imagenet2012", data_dir=tmp_path).info,
    ):
        assert (info.full_name, info.file_format.value) == ("imagenet2012/5.1.0", "array_record")
        assert {k: v.num_examples for k, v in info.splits.items()} == {"train": 9, "validation": 5}
        assert info.supervised_keys == ("image", "label")
    own = tfds.builder_cls("imagenet2012")(data_dir=tmp_path / "empty").info.features
    features = tfds.builder_from_directory(folder).info.features
    assert {k: type(v) for k, v in features.items()} == {k: type(v) for k, v in own.items()}
    example = tfds.builder_from_directory(folder).as_data_source("train")[0]
    assert example["file_name"].startswith(b"n01440764_") and example["image"].shape[-1] == 3
    assert {path.name for path in folder.iterdir()} == {
        "dataset_info.json",
        "features.json",
        "label.labels.txt",
        *(f"imagenet2012-train.array_record-0000{i}-of-00003" for i in range(3)),
        *(f"imagenet2012-validation.array_record-0000{i}-of-00003" for i in range(3)),
    }
    reader = ArrayRecordReader(str(folder / SHARD))
    assert "group_size:1," in reader.writer_options_string()


def test_class_folders_under_a_name_of_their_own(folders, tmp_path):
    info, splits = prepare.plan_folders(str(folders), "my_images")
    assert prepare.prepare(info, splits, str(tmp_path)) == tmp_path / "my_images/1.0.0"
    _assert_same_images(
        open_sources("my_images", data_dir=str(tmp_path)), open_sources(str(folders))
    )


def test_imagenets_tables_are_whole_and_sorted():
    facts = imagenet.imagenet_facts()
    assert facts.class_names == sorted(set(facts.class_names))
    assert (facts.class_names[0], facts.class_names[-1]) == ("n01440764", "n15075141")
    classes, counts = np.unique(facts.validation_labels, return_counts=True)
    assert classes.tolist() == facts.class_names and set(counts) == {50}
    assert facts.num_train == 1_281_167


def test_a_killed_run_looks_unfinished_and_goes_on(folders, tmp_path):
    whole = prepare.prepare(*prepare.plan_folders(str(folders), "my_images"), str(tmp_path / "a"))
    done = subprocess.run(
        [sys.executable, ROOT / "tests/killed_preparation.py", folders, tmp_path / "b"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    once, often = map(int, done.stdout.split()[-2:])
    assert once > 40 and often > 3
    resumed = [*(tmp_path / "b").glob("resumed*"), tmp_path / "b/my_images/1.0.0"]
    assert len(resumed) == once // 5 + 1
    for folder in resumed:
        assert _digests(folder) == _digests(whole)
