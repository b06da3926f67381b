"""Preparing datasets from tar files, class folders and TFRecord files, also after a kill."""

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

from noah_jax.data import imagenet, prepare, tfrecord
from noah_jax.data.decoding import decode
from noah_jax.data.shrink import shrink_dataset
from noah_jax.data.shrunk import Shrinking
from noah_jax.data.sources import open_sources
from tests.helpers import GOLDEN, ROOT

CLASSES = ["n01440764", "n02105855", "n15075141"]
VAL_LABELS = ["n15075141", "n01440764", "n02105855", "n01440764", "n15075141"]
METADATA = imagenet.Metadata(CLASSES, VAL_LABELS, num_train=9)
SHARD = "imagenet2012-train.array_record-00001-of-00003"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "IMAGES_PER_SHARD", 2)


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """The golden photographs; one is CMYK, one is gray and one is a PNG."""
    return [path.read_bytes() for path in sorted((GOLDEN / "images").iterdir())]


@pytest.fixture(scope="module")
def folders(photographs, tmp_path_factory) -> pathlib.Path:
    """The class folders of `METADATA`."""
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
    """Packs files into a tar file, the last one first."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path in reversed(files):
            _add(tar, path.name, path.read_bytes())
    return out.getvalue()


@pytest.fixture(scope="module")
def tars(folders, tmp_path_factory) -> tuple[str, str]:
    """The same images as two tar files, laid out as ImageNet's, in another order."""
    root = tmp_path_factory.mktemp("tars")
    train, val = root / "ILSVRC2012_img_train.tar", root / "ILSVRC2012_img_val.tar"
    with tarfile.open(train, "w") as tar:
        for name in reversed(CLASSES):
            _add(tar, f"{name}.tar", _tar(sorted((folders / "train" / name).iterdir())))
    val.write_bytes(_tar(sorted((folders / "val").glob("*/*"))))
    return str(train), str(val)


def _from_tars(tars, data_dir, metadata=METADATA) -> pathlib.Path:
    return prepare.prepare(*imagenet.plan_tars(*tars, metadata), str(data_dir))


def _checksums(folder: pathlib.Path) -> dict[str, str]:
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
    np.testing.assert_array_equal(decode(prepared[0][0][0]), decode(original[0][0][0]))


def test_tars_and_folders_give_the_same_dataset(tars, folders, tmp_path):
    prepared = _from_tars(tars, tmp_path / "tars")
    assert prepared == tmp_path / "tars/imagenet2012/5.1.0"
    _assert_same_images(
        open_sources("imagenet2012", data_dir=str(tmp_path / "tars")), open_sources(str(folders))
    )
    plan = imagenet.plan_imagenet_folders(str(folders), METADATA)
    prepare.prepare(*plan, str(tmp_path / "folders"))
    _assert_same_images(
        open_sources("imagenet2012", data_dir=str(tmp_path / "folders")),
        open_sources(str(folders)),
    )


def test_the_dataset_has_the_format_of_tfds(tars, tmp_path):
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


def test_class_folders_under_another_name(folders, tmp_path):
    info, splits = prepare.plan_folders(str(folders), "my_images")
    assert prepare.prepare(info, splits, str(tmp_path)) == tmp_path / "my_images/1.0.0"
    _assert_same_images(
        open_sources("my_images", data_dir=str(tmp_path)), open_sources(str(folders))
    )


def test_imagenets_tables_are_complete_and_sorted():
    metadata = imagenet.imagenet_metadata()
    assert metadata.class_names == sorted(set(metadata.class_names))
    assert (metadata.class_names[0], metadata.class_names[-1]) == ("n01440764", "n15075141")
    classes, counts = np.unique(metadata.validation_labels, return_counts=True)
    assert classes.tolist() == metadata.class_names and set(counts) == {50}
    assert metadata.num_train == 1_281_167


def test_a_killed_run_looks_unfinished_and_goes_on(folders, tmp_path):
    whole = prepare.prepare(*prepare.plan_folders(str(folders), "my_images"), str(tmp_path / "a"))
    done = subprocess.run(
        [sys.executable, ROOT / "tests/data/killed_preparation.py", folders, tmp_path / "b"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    once, often = map(int, done.stdout.split()[-2:])
    assert once > 40 and often > 3
    resumed = [*(tmp_path / "b").glob("resumed*"), tmp_path / "b/my_images/1.0.0"]
    assert len(resumed) == once // 5 + 1
    for folder in resumed:
        assert _checksums(folder) == _checksums(whole)


def _assert_refused(tmp_path, words: str, plan, *arguments) -> None:
    """Asserts that a plan is refused and nothing is left that looks like a dataset."""
    with pytest.raises(ValueError, match=words):
        prepare.prepare(*plan(*arguments), str(tmp_path / "out"))
    assert not (tmp_path / "out/imagenet2012/5.1.0").exists()
    assert not (tmp_path / "out/my_images").exists()


def test_a_truncated_tar_is_named_before_any_work(tars, tmp_path):
    whole = pathlib.Path(tars[0]).read_bytes()
    short = tmp_path / "short.tar"
    with tarfile.open(tars[0]) as tar:
        last = tar.getmembers()[-1]
    for size, words in (
        (len(whole) // 2, "short.tar is truncated: it has .* bytes and n.*tar in it goes to byte"),
        (last.offset_data + 1000, "short.tar is truncated"),
        (last.offset, r"short.tar has 2 classes, 3 are expected"),
        (100, "short.tar is no tar file, or is corrupt"),
        (0, "short.tar is no tar file, or is corrupt: empty file"),
    ):
        short.write_bytes(whole[:size])
        _assert_refused(tmp_path, words, imagenet.plan_tars, str(short), tars[1], METADATA)
        assert not (tmp_path / "out").exists()
    short.write_bytes(pathlib.Path(tars[1]).read_bytes()[:-70_000])
    _assert_refused(
        tmp_path, "short.tar is truncated", imagenet.plan_tars, tars[0], str(short), METADATA
    )
    _assert_refused(
        tmp_path, "none.tar cannot be read", imagenet.plan_tars, "/none.tar", tars[1], METADATA
    )


def test_corrupt_headers_are_named(tars, tmp_path):
    """Python's tarfile takes such a header for the end of the file."""
    data = bytearray(pathlib.Path(tars[0]).read_bytes())
    with tarfile.open(tars[0]) as tar:
        outer = tar.getmembers()
    with tarfile.open(fileobj=io.BytesIO(data[outer[1].offset_data :])) as tar:
        inner = outer[1].offset_data + tar.getmembers()[1].offset
    corrupt = tmp_path / "corrupt.tar"
    for at, words in (
        (outer[1].offset, "corrupt.tar is corrupt at byte"),
        (inner, f"{outer[1].name} in .*corrupt.tar is corrupt at byte"),
    ):
        changed = data.copy()
        changed[at] ^= 1
        corrupt.write_bytes(changed)
        _assert_refused(tmp_path, words, imagenet.plan_tars, str(corrupt), tars[1], METADATA)


def test_other_classes_and_counts_are_refused(tars, folders, tmp_path):
    plan = imagenet.plan_tars
    fewer = imagenet.Metadata(["n01440764", "n02105855"], VAL_LABELS, 9)
    _assert_refused(tmp_path, "holds n15075141, which is none of", plan, *tars, fewer)
    more = imagenet.Metadata(CLASSES, VAL_LABELS, 10)
    _assert_refused(tmp_path, "train must have 10 images, 9 were found", plan, *tars, more)
    more = imagenet.Metadata(CLASSES, [*VAL_LABELS, CLASSES[0]], 9)
    _assert_refused(tmp_path, "val.tar has 5 images, 6 are expected", plan, *tars, more)
    plan = imagenet.plan_imagenet_folders
    _assert_refused(tmp_path, "val has 5 images, 6 are expected", plan, str(folders), more)
    more = imagenet.Metadata([*CLASSES, "n2"], VAL_LABELS, 9)
    _assert_refused(tmp_path, "train has 3 classes, 4 are expected", plan, str(folders), more)
    _assert_refused(tmp_path, "has no folder train/", plan, str(tmp_path), METADATA)


@pytest.mark.parametrize("name", ["My-Images", "../up", "", "fashion_mnist_sample"])
def test_names_that_no_dataset_can_have(folders, tmp_path, name):
    _assert_refused(tmp_path, "is no name for a dataset", prepare.plan_folders, str(folders), name)


def test_the_validation_labels_table_may_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds.core, "tfds_path", lambda name: tmp_path / name)
    with pytest.raises(ValueError, match=r"lacks datasets/imagenet2012/labels\.txt"):
        imagenet.imagenet_metadata()


def test_an_existing_dataset_is_left_alone(tars, folders, tmp_path):
    folder = _from_tars(tars, tmp_path)
    before = _checksums(folder)
    _from_tars(tars, tmp_path)
    assert _checksums(folder) == before
    (folders / "train" / CLASSES[0] / "more.JPEG").write_bytes(b"")
    try:
        plan = imagenet.plan_imagenet_folders(
            str(folders), imagenet.Metadata(CLASSES, VAL_LABELS, 10)
        )
    finally:
        (folders / "train" / CLASSES[0] / "more.JPEG").unlink()
    with pytest.raises(ValueError, match="holds another dataset"):
        prepare.prepare(*plan, str(tmp_path))
    assert _checksums(folder) == before
    # A run does not go on with an unfinished dataset of other data.
    partial = folder.with_name(".5.1.0.partial")
    folder.rename(partial)
    (partial / ".plan.json").write_text('{"train": ["other.tar, 5 bytes", 3]}')
    with pytest.raises(ValueError, match="unfinished dataset that was made of other data"):
        _from_tars(tars, tmp_path)
    assert {name: _checksums(partial)[name] for name in before} == before
    # The folder holds something else.
    folder.mkdir()
    with pytest.raises(ValueError, match="exists and is no prepared dataset"):
        _from_tars(tars, tmp_path)


def test_a_corrupt_shard_is_written_again(tars, tmp_path):
    folder = _from_tars(tars, tmp_path)
    whole = _checksums(folder)
    partial = folder.with_name(".5.1.0.partial")
    folder.rename(partial)
    os.truncate(partial / SHARD, 65_536)
    assert _checksums(_from_tars(tars, tmp_path)) == whole


def test_two_runs_do_not_write_at_the_same_time(tars, tmp_path):
    partial = tmp_path / "imagenet2012/.5.1.0.partial"
    partial.mkdir(parents=True)
    with prepare.lock(partial), pytest.raises(ValueError, match="another run is writing"):
        _from_tars(tars, tmp_path)
    _from_tars(tars, tmp_path)


def _frame(record: bytes) -> bytes:
    """Returns a record with its checksums, as in a TFRecord file."""

    def checksum(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(record))
    return length + checksum(length) + record + checksum(record)


@pytest.fixture
def tfrecords(tars, tmp_path) -> pathlib.Path:
    """The dataset as TFRecord files."""
    whole = _from_tars(tars, tmp_path / "whole")
    folder = tmp_path / "old/imagenet2012/5.1.0"
    folder.mkdir(parents=True)
    for path in whole.iterdir():
        name = path.name.replace("array_record", "tfrecord")
        if "-of-" in name:
            records = ArrayRecordReader(str(path)).read_all()
            (folder / name).write_bytes(b"".join(map(_frame, records)))
        elif name == "dataset_info.json":
            (folder / name).write_text(path.read_text().replace("array_record", "tfrecord"))
        else:
            shutil.copy(path, folder / name)
    return folder


def test_the_checksum_is_that_of_tfrecord():
    # The header of a record of 5 bytes, as TensorFlow writes it.
    assert _frame(b"hello")[:12].hex() == "0500000000000000" + "eab2043e"


def test_a_tfrecord_dataset_is_converted(tfrecords, folders, tmp_path):
    before = _checksums(tfrecords)
    with pytest.raises(ValueError, match=f"tfrecord, .*--from-tfrecord {tfrecords} --data-dir NEW"):
        open_sources("imagenet2012", data_dir=str(tmp_path / "old"))
    converted = prepare.prepare(*tfrecord.plan_conversion(str(tfrecords)), str(tmp_path / "new"))
    whole = tmp_path / "whole/imagenet2012/5.1.0"
    shards = {k: v for k, v in _checksums(whole).items() if "-of-" in k}
    assert len(shards) == 6 and shards.items() <= _checksums(converted).items()
    _assert_same_images(
        open_sources("imagenet2012", data_dir=str(tmp_path / "new")), open_sources(str(folders))
    )
    with pytest.raises(ValueError, match="holds a dataset in tfrecord format; choose another"):
        prepare.prepare(*tfrecord.plan_conversion(str(tfrecords)), str(tmp_path / "old"))
    assert _checksums(tfrecords) == before


def test_tars_folders_and_tfrecords_are_shrunk_alike(tars, folders, tfrecords, tmp_path):
    contents = []
    for i, plan in enumerate(
        (
            imagenet.plan_tars(*tars, METADATA),
            imagenet.plan_imagenet_folders(str(folders), METADATA),
            tfrecord.plan_conversion(str(tfrecords)),
        )
    ):
        data_dir = str(tmp_path / str(i))
        folder = prepare.prepare(*shrink_dataset(*plan, Shrinking(100)), data_dir)
        assert folder == tmp_path / str(i) / "imagenet2012_100/5.1.0"
        train, val = open_sources("imagenet2012_100", data_dir=data_dir)
        assert _content(val) == _content(open_sources(str(folders))[1])
        contents.append([(*train[i], train.file_name(i)) for i in range(9)])
    assert contents[0] == contents[1] == contents[2]
    assert max(decode(contents[0][0][0]).shape) == 100


def test_corrupt_tfrecords_are_named(tfrecords, tmp_path):
    path = tfrecords / SHARD.replace("array_record", "tfrecord")
    whole = path.read_bytes()
    first = 16 + struct.unpack("<Q", whole[:8])[0]
    for data, words in (
        (whole[:-1], f"{path.name} is truncated at the record at byte"),
        (whole[: first + 5], f"is truncated at the record at byte {first:,}"),
        (whole[:100] + b"?" + whole[101:], "is corrupt at the record at byte 0"),
        (whole[:first] + b"?" + whole[first + 1 :], f"is corrupt at the record at byte {first:,}"),
        (whole[:first], r"train must have 9 images, \d were found"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            prepare.prepare(*tfrecord.plan_conversion(str(tfrecords)), str(tmp_path / "new"))
        assert not (tmp_path / "new/imagenet2012/5.1.0").exists()
        shutil.rmtree(tmp_path / "new")
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is missing"):
        tfrecord.plan_conversion(str(tfrecords))
    with pytest.raises(ValueError, match="is stored as array_record, not as tfrecord"):
        tfrecord.plan_conversion(str(tmp_path / "whole/imagenet2012/5.1.0"))
    with pytest.raises(ValueError, match="is no dataset that TFDS prepared"):
        tfrecord.plan_conversion(str(tmp_path))
