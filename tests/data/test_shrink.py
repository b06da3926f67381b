"""Sets of shrunk images: what is in them, resuming, training on them, and what is said of them."""

import dataclasses
import hashlib
import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from noah_jax import load_model
from noah_jax.data import prepare, prepare_estimate
from noah_jax.data.batches import train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource, decode
from noah_jax.data.prepared import plan_prepared
from noah_jax.data.record import record_data
from noah_jax.data.sampler import Sampler
from noah_jax.data.shrink import shrink_dataset, shrink_image
from noah_jax.data.shrunk import Shrinking, describe_pixels, original_name
from noah_jax.data.sources import open_sources
from noah_jax.data.transforms import TrainTransform
from noah_jax.errors import CorruptImageError, InputError
from noah_jax.prepare.__main__ import main
from noah_jax.runs.data_file import check_data
from noah_jax.train import train
from tests.helpers import GOLDEN, make_tiny_config

AT_48 = Shrinking(48)
RAW = Shrinking(48, raw=True)
PHOTOGRAPHS = sorted((GOLDEN / "images").iterdir())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "IMAGES_PER_SHARD", 5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> str:
    """Class folders with 12 + 4 images of 30 to 80 pixels; the training's third is corrupt."""
    root = tmp_path_factory.mktemp("originals")
    photographs = [Image.open(path).convert("RGB") for path in PHOTOGRAPHS[:2]]
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for i in range(count):
            width, height = (int(side) for side in random.integers(30, 81, 2))
            path = root / split / "abc"[i % 3] / f"{i:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photographs[i % 2].resize((width, height)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:100])  # an evaluation image, which is not looked at
    third = root / "train/a/06.jpg"
    third.write_bytes(third.read_bytes()[:-200])
    return str(root)


def _plan(folders: str, shrinking: Shrinking | None = None, **options):
    plan = prepare.plan_folders(folders, "photos")
    return plan if shrinking is None else shrink_dataset(*plan, shrinking, **options)


@pytest.fixture(scope="module")
def data_dir(folders, tmp_path_factory) -> str:
    """The originals, the images of at most 48 pixels and their raw pixels, all prepared."""
    folder = str(tmp_path_factory.mktemp("sets"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "IMAGES_PER_SHARD", 5)
        for shrinking in (None, AT_48, RAW):
            prepare.prepare(*_plan(folders, shrinking), folder, tell=lambda line: None)
    return folder


def _checksums(folder: pathlib.Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("shrinking", [AT_48, RAW])
def test_a_set_has_the_labels_order_and_names_of_the_original(data_dir, shrinking):
    name = f"photos{shrinking.suffix}"
    assert name == ("photos_48_raw" if shrinking.raw else "photos_48")
    original, original_val = open_sources("photos", data_dir=data_dir)
    source, val = open_sources(name, data_dir=data_dir)
    assert source.class_names == original.class_names and len(source) == 12
    assert [val[i] for i in range(4)] == [original_val[i] for i in range(4)]
    changed = 0
    for i in range(12):
        (before, label), (after, same_label) = original[i], source[i]
        assert (same_label, source.file_name(i)) == (label, original.file_name(i))
        if original.file_name(i) == "06.jpg":
            assert after == before  # it is corrupt
            continue
        height, width, _ = decode(before).shape
        new_height, new_width, _ = decode(after).shape
        if max(width, height) <= 48:
            assert (new_width, new_height) == (width, height)
            assert after == before or shrinking.raw
        else:
            changed += 1
            assert max(new_width, new_height) == 48
            assert abs(new_width * height - new_height * width) <= max(width, height) / 2
        if shrinking.raw:
            assert Image.open(io.BytesIO(after)).format == "PPM"
            np.testing.assert_array_equal(Image.open(io.BytesIO(after)), decode(after))
    assert 4 < changed < 11


def test_tfds_reads_such_sets(data_dir):
    for name in ("photos_48", "photos_48_raw"):
        info = tfds.builder(name, data_dir=data_dir).info
        assert info.metadata["shrinking"]["original"] == "photos/1.0.0"
        example = tfds.builder(name, data_dir=data_dir).as_data_source("train")[0]
        source, _ = open_sources(name, data_dir=data_dir)
        pixels = decode(source[0][0])
        assert example["image"].shape == pixels.shape
        assert np.abs(example["image"].astype(int) - pixels).max() <= 3  # its decoder is OpenCV


def test_every_kind_of_image_is_decoded_as_for_training():
    for path in PHOTOGRAPHS:
        data = path.read_bytes()
        pixels = decode(data)
        raw = decode(shrink_image(data, Shrinking(raw=True)))
        np.testing.assert_array_equal(raw, pixels)
        shrunk = shrink_image(data, Shrinking(200))
        if max(pixels.shape) <= 200:
            assert shrunk == data
            continue
        with Image.open(io.BytesIO(shrunk)) as image:
            assert image.format == "JPEG" and not image.getexif() and max(image.size) == 200
            assert image.mode == ("L" if "gray" in path.name else "RGB")
            by_pillow = Image.fromarray(pixels).resize(image.size, Image.Resampling.BICUBIC)
        assert np.abs(decode(shrunk).astype(int) - np.asarray(by_pillow)).mean() < 3
    with pytest.raises(CorruptImageError, match=r"x\.jpg cannot be decoded"):
        shrink_image(b"no image", Shrinking(200), "x.jpg")


def test_every_source_gives_the_same_set(folders, data_dir, tmp_path):
    again = shrink_dataset(*plan_prepared(f"{data_dir}/photos/1.0.0"), AT_48)
    folder = prepare.prepare(*again, str(tmp_path), tell=lambda line: None)
    assert _checksums(folder) == _checksums(pathlib.Path(data_dir, "photos_48/1.0.0"))


def test_an_interrupted_set_goes_on_to_the_same_bytes(folders, data_dir, tmp_path, capsys):
    class Stop(Exception):
        pass

    info, (train_split, val_split) = _plan(folders, AT_48)
    seen = []

    def change(record: bytes) -> bytes:
        seen.append(record)
        if len(seen) > 7:
            raise Stop
        return train_split.change(record)

    with pytest.raises(Stop):
        broken = dataclasses.replace(train_split, change=change)
        prepare.prepare(info, [broken, val_split], str(tmp_path))
    other = _plan(folders, Shrinking(48, quality=80), name="photos_48")
    with pytest.raises(InputError, match="unfinished dataset that was made of other data"):
        prepare.prepare(*other, str(tmp_path))
    folder = prepare.prepare(*_plan(folders, AT_48), str(tmp_path))
    assert "train: going on after 4 images" in capsys.readouterr().out
    assert _checksums(folder) == _checksums(pathlib.Path(data_dir, "photos_48/1.0.0"))
    with pytest.raises(InputError, match="holds images of at most 48 px, JPEG quality 95 in train"):
        prepare.prepare(*other, str(tmp_path))


def test_a_corrupt_image_is_told(folders, tmp_path, capsys):
    prepare.prepare(*_plan(folders, AT_48), str(tmp_path))
    error = capsys.readouterr().err
    assert "corrupt image 1: 06.jpg of train cannot be decoded" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["photos_48", "photos_48_raw"])
def test_batches_are_the_same_after_a_resume_and_on_many_hosts(data_dir, name):
    source, _ = open_sources(name, data_dir=data_dir)
    transform = TrainTransform("random_resized", (16, 16))

    def batches(start: int, host: int = 0, hosts: int = 1) -> list[dict[str, np.ndarray]]:
        return list(
            train_batches(
                DecodedSource(source),
                transform,
                Sampler(3, len(source), 4),
                start_step=start,
                total_steps=6,
                num_threads=2,
                put=lambda batch: batch,
                corrupt_images=CorruptImages("replace", tell=lambda line: None),
                process_index=host,
                process_count=hosts,
            )
        )

    whole, resumed = batches(0), batches(2)
    halves = zip(batches(0, 0, 2), batches(0, 1, 2), strict=True)
    assert np.ptp([batch["image"].mean() for batch in whole]) > 1
    for key in ("image", "label"):
        for batch, again in zip(whole[2:], resumed, strict=True):
            np.testing.assert_array_equal(again[key], batch[key])
    for batch, parts in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(np.concatenate([p["image"] for p in parts]), batch["image"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["photos_48", "photos_48_raw"])
def test_a_training_resumes_bit_exactly(data_dir, tmp_path, name):
    config = make_tiny_config(name)
    config.data.dir = data_dir
    config.data.crop = "random_resized"
    config.batch_size = config.eval_batch_size = 4
    config.epochs = 2.0
    results = train(config, str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    (tmp_path / "resumed/results.json").unlink()
    shutil.rmtree(tmp_path / "resumed/checkpoints/6")
    assert train(config, str(tmp_path / "resumed")) == results
    weights = (load_model(str(tmp_path / name))[1] for name in ("resumed", "whole"))
    for a, b in zip(*map(jax.tree.leaves, weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_run_reads_is_said_and_recorded(data_dir, tmp_path):
    original = open_sources("photos", data_dir=data_dir)
    shrunk = open_sources("photos_48", data_dir=data_dir)
    assert describe_pixels(*original) is None
    assert describe_pixels(*shrunk) == (
        "trains on photos_48 (images of at most 48 px, JPEG quality 95), evaluates on the original"
        " images"
    )
    assert describe_pixels(shrunk[0], shrunk[0]).endswith(
        "evaluates on photos_48 (images of at most 48 px, JPEG quality 95)"
    )
    record = record_data(*shrunk)
    assert record["train"]["pixels"] == "of at most 48 px, JPEG quality 95"
    assert "pixels" not in record["eval"]
    other = json.loads(json.dumps(record))
    other["train"]["pixels"] = "of at most 64 px, JPEG quality 95"
    (tmp_path / "data.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"training images were of at most 64 px, .* and are of"):
        check_data(tmp_path, record, allow_change=False)
    other["train"] = record_data(*original)["train"]
    (tmp_path / "data.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"were photos/1\.0\.0:train and are photos_48/1\.0\.0"):
        check_data(tmp_path, record, allow_change=False)


def test_names():
    for shrinking in (Shrinking(400), Shrinking(512, quality=90), RAW, Shrinking(raw=True)):
        assert original_name(f"imagenet2012{shrinking.suffix}") == "imagenet2012"
    assert Shrinking(512, quality=90).suffix == "_512_q90"
    assert original_name("imagenet2012") == "imagenet2012"
    assert original_name("coco2017_400") == "coco2017"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 375), (400, 300)),
        ((375, 500), (300, 400)),
        ((401, 1), (400, 1)),
        ((9, 400), (9, 400)),
    ],
)
def test_the_longer_side_is_limited(size, expected):
    assert Shrinking(400).size(*size) == expected


def test_other_splits_are_shrunk_if_asked(folders, tmp_path):
    plan = _plan(folders, Shrinking(40), shrink_splits=["val"], name="other")
    prepare.prepare(*plan, str(tmp_path), tell=lambda line: None)
    train_source, val = open_sources("other", data_dir=str(tmp_path))
    assert train_source.shrinking is None and val.shrinking == Shrinking(40)
    assert max(decode(train_source[0][0]).shape) > 40 >= max(decode(val[0][0]).shape)


def test_what_does_not_fit_is_refused(folders, data_dir, tmp_path, monkeypatch):
    for options, words in (
        ({"max_side": 0}, "max_side must be at least 1 pixel, got 0"),
        ({"max_side": 9, "quality": 101}, "quality must be 1 to 100, got 101"),
        ({}, "max_side or raw is needed"),
    ):
        with pytest.raises(InputError, match=words):
            Shrinking(**options)
    plan = prepare.plan_folders(folders, "photos")
    with pytest.raises(InputError, match="has no split 'test'; name some of train, val"):
        shrink_dataset(*plan, AT_48, shrink_splits=["test"])
    with pytest.raises(InputError, match="has no training split to shrink; name some of val"):
        shrink_dataset(plan[0], plan[1][1:], AT_48)
    shrunk = plan_prepared(f"{data_dir}/photos_48/1.0.0")
    with pytest.raises(InputError, match=r"of photos_48/1\.0\.0 are of at most 48 px, .* already"):
        shrink_dataset(*shrunk, Shrinking(32))
    usage = prepare_estimate.shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(prepare_estimate.shutil, "disk_usage", lambda path: usage)
    info, splits = _plan(folders, RAW)
    estimates = prepare_estimate.estimate_splits(splits)
    with pytest.raises(InputError, match=r"needs about \d+\.\d kB, and .* has 10\.0 kB for it"):
        prepare_estimate.check_room(info, estimates, str(tmp_path))


def test_the_program_estimates_first(folders, tmp_path, capsys):
    command = ["--folder", folders, "--name", "my_photos", "--data-dir", str(tmp_path)]
    assert main([*command, "--max-side", "48", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"my_photos/1.0.0 under {tmp_path}"
    assert "train: 12 images, 9 of a sample of 12 change" in lines[1]
    assert "val: 4 images, as they are" in lines[2] and len(lines) == 3
    assert not any(tmp_path.iterdir())
    assert main([*command, "--max-side", "48", "--quality", "80"]) == 0
    assert "is complete: train 12, val 4" in capsys.readouterr().out
    source, _ = open_sources("my_photos", data_dir=str(tmp_path))
    assert source.shrinking == Shrinking(48, quality=80)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folder", "x", "--quality", "90"], "--quality goes with --max-side and without --raw"),
        (["--folder", "x", "--raw", "--quality", "90", "--max-side", "9"], "without --raw"),
        (["--from-prepared", "x"], "--from-prepared goes with --max-side or --raw"),
        (["--folder", "x", "--shrink-splits", "val"], "--shrink-splits goes with --max-side or"),
        (["--folder", "x", "--max-side", "9", "--quality", "101"], "quality must be 1 to 100"),
        (["--from-prepared", "/none", "--max-side", "9"], "/none is no dataset that TFDS prepared"),
    ],
)
def test_bad_options_are_answered_with_one_line(options, words, capsys, tmp_path):
    assert main([*options, "--data-dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and words in error
    assert not (tmp_path / "out").exists()
