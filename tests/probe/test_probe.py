"""Runs python -m noah_jax.probe on a tiny run, as a user does."""

import csv
import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from noah_jax import create_model, load_model
from noah_jax.data.sources import open_sources
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.models.base import Model
from noah_jax.paths import expand_home
from noah_jax.probe.__main__ import main
from noah_jax.probe.choices import Choices
from noah_jax.probe.encoder import Encoder, load_encoder
from noah_jax.probe.features import MAP, POOLED, FeatureCache
from noah_jax.runs.model_folder import write_model_folder

QUICK = ["--epochs", "2", "--k", "3", "500", "--learning-rates", "0.03", "0.3", "--seeds", "0", "1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """The cache and the folder of results of this module's tests."""
    root = tmp_path_factory.mktemp("probe")
    return root / "cache", root / "out"


@pytest.fixture(scope="module")
def words(tiny_run, folders) -> list[str]:
    cache, out = folders
    return ["--backbone", tiny_run, "--cache", str(cache), "--workdir", str(out), *QUICK]


@pytest.fixture(scope="module")
def result(words, folders) -> dict:
    assert main([*words, "--heads", "linear", "noah", "--knn"]) == 0
    return json.loads((folders[1] / "probe.json").read_text())


def test_the_table_and_the_files_agree(result, folders, words, capsys):
    assert main([*words, "--heads", "linear", "noah", "--knn"]) == 0
    said = capsys.readouterr()
    assert "21 images, pooled 32 and map 4x4x32 in float16" in said.out
    assert said.out.count("from the cache") == 2 and "into" not in said.out
    assert "k-NN with k = 500 is left out: there are 60 training images" in said.err
    assert "learning rates were chosen on training images" in said.err
    table = said.out[said.out.index("| head") :]
    out = folders[1]
    assert (out / "probe.md").read_text() == table
    again = json.loads((out / "probe.json").read_text())
    rows = list(csv.DictReader((out / "probe.csv").read_text().splitlines()))
    assert [row["head"] for row in rows] == ["linear", "noah", "k-NN, k = 3"]
    for row, first, second in zip(rows, result["rows"], again["rows"], strict=True):
        # The second run reads the cache and computes the same.
        assert first["values"] == second["values"]
        assert first["learning_rate"] == second["learning_rate"]
        assert float(row["top1"]) == pytest.approx(np.mean(first["values"]))
        assert f"| {row['head']} | {int(row['parameters']):,} |" in table
    linear, noah, _ = result["rows"]
    assert linear["parameters"] == 33 * 3 and linear["seeds"] == [0, 1]
    assert set(linear["held_out"]) == {"0.03", "0.3"}
    assert (linear["recipe"]["optimizer"], noah["recipe"]["optimizer"]) == ("lars", "adamw")
    assert result["eval"]["images"] == 21 and not result["fresh"]


def test_evaluate_measures_the_same(result, class_folders, capsys):
    for row in result["rows"][:2]:
        for folder, top1 in zip(row["folders"], row["values"], strict=True):
            options = ["--checkpoint", folder, "--dataset", class_folders, "--json"]
            assert evaluate(options) == 0
            measured = json.loads(capsys.readouterr().out)
            assert measured["top1"] == pytest.approx(top1)


def test_the_models_have_the_backbone_that_was_probed(result, tiny_run):
    _, params, stats = load_model(tiny_run)
    for row in result["rows"][:2]:
        model, own, own_stats = load_model(row["folders"][0])
        assert model.arguments["head"] == row["head"]
        assert model.class_names == ("ant", "bee", "cat")
        description = json.loads(pathlib.Path(row["folders"][0], "model.json").read_text())
        assert description["source"]["probe"] == tiny_run
        same = {k: v for k, v in own.items() if k != "head"}
        expected = {k: v for k, v in params.items() if k != "head"}
        jax.tree.map(np.testing.assert_array_equal, same, expected)
        jax.tree.map(np.testing.assert_array_equal, own_stats, stats)


def test_without_heads_and_dry(words, tmp_path, capsys):
    words = [*words, "--workdir", str(tmp_path / "out")]
    assert main([*words, "--heads", "--knn"]) == 0
    assert "pooled 32 in float16" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "probe.md",
        "probe.csv",
        "probe.json",
    }
    new = ["--workdir", str(tmp_path / "dry"), "--cache", str(tmp_path / "dry"), "--dry-run"]
    assert main([*words, *new, "--heads", "noah"]) == 0
    said = capsys.readouterr().out
    assert "60 images, map 4x4x32" in said and "dry run: nothing was written" in said
    assert not (tmp_path / "dry").exists()


# -- the cache ---------------------------------------------------------------------------------


class _Counted:
    """A source that counts how often an image is read."""

    def __init__(self, source, stop_after: int | None = None):
        self._source = source
        self._stop_after = stop_after
        self.read: list[int] = []
        self.name, self.class_names = source.name, source.class_names
        self.multi_label = source.multi_label

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        if self._stop_after is not None and len(self.read) >= self._stop_after:
            raise RuntimeError("stopped")
        self.read.append(index)
        return self._source[index]

    def describe(self, index):
        return self._source.describe(index)

    def file_name(self, index):
        return self._source.file_name(index)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """The folder of a backbone that compiles quickly, with a map of 2x2 positions."""
    model = create_model("mixer_s16_224", num_classes=3, image_size=32, width=8, depth=1)
    return _write(model, tmp_path_factory.mktemp("mixer") / "model")


def _write(model: Model, folder: pathlib.Path) -> str:
    params, stats = model.init(jax.random.key(0))
    description = {"name": model.name, "arguments": model.arguments}
    write_model_folder(folder, description, {"params": params, "stats": stats})
    return str(folder)


@pytest.fixture(scope="module")
def encoder(small):
    return load_encoder(small, ema=False, settings={})


@pytest.fixture(scope="module")
def source(class_folders):
    return open_sources(class_folders)[1]


def _cache(root: pathlib.Path, dtype: str = "float32") -> FeatureCache:
    # A chunk is 5 of the 21 images.
    size = 5 * 2 * 2 * 8 * jnp.dtype(dtype).itemsize
    return FeatureCache(str(root), dtype, batch_size=4, num_threads=1, chunk_bytes=size)


def test_features_are_those_of_the_model(encoder, source, class_folders, tmp_path):
    features = _cache(tmp_path).load(encoder, source, {}, [POOLED, MAP])
    files = [path for path, _ in source.files]
    transform = encoder.trained.preprocessing.transform()
    images = np.stack([transform(np.asarray(Image.open(path))) for path in files])
    expected, token = encoder.trained.model.encode(
        encoder.trained.params,
        encoder.trained.stats,
        images,
        mean=encoder.trained.preprocessing.mean,
        std=encoder.trained.preprocessing.std,
    )
    assert token is None
    np.testing.assert_allclose(features.arrays[MAP], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        features.arrays[POOLED], np.mean(expected, (1, 2)), rtol=1e-4, atol=1e-5
    )
    assert features.labels.tolist() == [label for _, label in source.files]


def test_only_what_is_missing_or_corrupt_is_computed(encoder, source, tmp_path, capsys):
    cache = _cache(tmp_path)
    counted = _Counted(source)
    first = cache.load(encoder, counted, {}, [POOLED])
    pooled = np.array(first.arrays[POOLED])
    assert sorted(counted.read) == list(range(21))
    assert "into" in capsys.readouterr().out
    counted = _Counted(source)
    cache.load(encoder, counted, {}, [POOLED])
    assert counted.read == [] and "from the cache" in capsys.readouterr().out
    # Another array is added, with all its images.
    cache.load(encoder, _Counted(source), {}, [POOLED, MAP])
    (folder,) = tmp_path.iterdir()
    data = bytearray((folder / "pooled.bin").read_bytes())
    data[8 * 4 * 7] ^= 8  # a bit of image 7
    (folder / "pooled.bin").write_bytes(data)
    counted = _Counted(source)
    mended = cache.load(encoder, counted, {}, [POOLED, MAP])
    assert sorted(counted.read) == [5, 6, 7, 8, 9]
    assert "pooled.bin: 1 of 5 chunks are corrupt" in capsys.readouterr().err
    np.testing.assert_allclose(mended.arrays[POOLED], pooled, rtol=1e-5, atol=1e-6)


def test_an_interrupted_command_goes_on(encoder, source, tmp_path, capsys):
    cache = _cache(tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        cache.load(encoder, _Counted(source, stop_after=17), {}, [POOLED, MAP])
    (folder,) = tmp_path.iterdir()
    done = (folder / "map.sums").read_text().count(" ")
    assert 1 <= done <= 3
    counted = _Counted(source)
    going_on = cache.load(encoder, counted, {}, [POOLED, MAP])
    assert sorted(counted.read) == list(range(5 * done, 21))
    assert "some are there already" in capsys.readouterr().out
    whole = _cache(tmp_path / "other").load(encoder, source, {}, [POOLED, MAP])
    for kind in (POOLED, MAP):
        np.testing.assert_allclose(going_on.arrays[kind], whole.arrays[kind], rtol=1e-5, atol=1e-6)


def test_what_changes_a_feature_has_another_place(encoder, source, small, tmp_path):
    def places() -> int:
        return len(list(tmp_path.iterdir()))

    _cache(tmp_path).load(encoder, source, {"images": 1}, [POOLED])
    _cache(tmp_path).load(encoder, source, {"images": 1}, [POOLED])
    assert places() == 1
    _cache(tmp_path).load(encoder, source, {"images": 2}, [POOLED])
    _cache(tmp_path, "float16").load(encoder, source, {"images": 1}, [POOLED])
    assert places() == 3
    other = load_encoder(small, ema=False, settings={"std": 0.3})
    _cache(tmp_path).load(other, source, {"images": 1}, [POOLED])
    assert places() == 4
    params = jax.tree.map(lambda x: x * 1.001, encoder.trained.params)
    other = Encoder(dataclasses.replace(encoder.trained, params=params), fresh=False)
    assert other.record["sha256"] != encoder.record["sha256"]
    params = {**encoder.trained.params, "head": params["head"]}
    same = Encoder(dataclasses.replace(encoder.trained, params=params), fresh=False)
    assert same.record == encoder.record  # the head has no part in the features


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_as_small_as_it_is_said_to_be(encoder, source, dtype, tmp_path, capsys):
    exact = np.array(_cache(tmp_path).load(encoder, source, {}, [MAP]).arrays[MAP])
    capsys.readouterr()
    rounded = _cache(tmp_path, dtype).load(encoder, source, {}, [MAP]).arrays[MAP]
    percent = float(capsys.readouterr().out.split("rounded by at most ")[1].split(" ")[0])
    error = np.abs(np.asarray(rounded, np.float32) - exact)
    normal = np.abs(exact) > 1e-4  # float16 is coarser below
    assert normal.sum() > 500
    assert (error <= np.abs(exact) * percent / 100 * 1.01)[normal].all()
    assert error.max() > 0


def test_a_corrupt_image_is_left_out(encoder, class_folders, tmp_path, capsys):
    shutil.copytree(pathlib.Path(class_folders) / "val", tmp_path / "data" / "val")
    shutil.copytree(pathlib.Path(class_folders) / "val", tmp_path / "data" / "train")
    (tmp_path / "data" / "val" / "bee" / "03.png").write_bytes(b"no image")
    source = open_sources(str(tmp_path / "data"))[1]
    features = _cache(tmp_path / "cache").load(encoder, source, {}, [POOLED])
    assert len(features.rows) == 20 and 10 not in features.rows
    assert "1 images are left out" in capsys.readouterr().err


# -- class tokens ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_token(tmp_path_factory) -> str:
    """The folder of a tiny backbone with a class token."""
    small = dict(width=16, depth=1, num_heads=2, pre_logits=False)
    model = create_model("deit_tiny_patch16_224", num_classes=3, image_size=32, **small)
    return _write(model, tmp_path_factory.mktemp("deit") / "model")


def test_the_backbone_keeps_its_class_token_under_every_head(
    with_token, class_folders, tmp_path, capsys
):
    words = ["--backbone", with_token, "--dataset", class_folders, "--cache", str(tmp_path / "c")]
    words += ["--workdir", str(tmp_path / "out"), *QUICK, "--seeds", "0"]
    words += ["--epochs", "1", "--learning-rates", "0.1"]
    # Random features are so much alike that rounding them may change a prediction.
    words += ["--cache-dtype", "float32"]
    assert main([*words, "--heads", "linear", "noah"]) == 0
    capsys.readouterr()
    rows = json.loads((tmp_path / "out" / "probe.json").read_text())["rows"]
    for row in rows:
        model, params, _ = load_model(row["folders"][0])
        assert "cls_token" in params and model.arguments["head"] == row["head"]
        options = ["--checkpoint", row["folders"][0], "--dataset", class_folders, "--json"]
        assert evaluate(options) == 0
        measured = json.loads(capsys.readouterr().out)
        assert measured["top1"] == pytest.approx(row["values"][0])


# -- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--backbone", "resnet5"],
            "no file, folder or model resnet5; did you mean resnet50",
        ),
        (["--backbone", "nowhere/run"], "nowhere/run"),
        (["--heads", "noha"], "did you mean noah"),
        (["--heads"], "there is nothing to do"),
        (["--heads", "noah", "noah"], "--heads repeats a value"),
        (["--seeds", "0", "0"], "--seeds repeats a value"),
        (["--seeds", "-1"], "--seeds must be 0 or more"),
        (["--learning-rates", "0"], "--learning-rates must be above 0"),
        (["--holdout", "1"], "--holdout must be between 0 and 1"),
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--weight-decay", "-1"], "--weight-decay must be 0 or more"),
        (["--epochs", "0"], "--epochs"),
        (["--optimizer", "adam"], "--optimizer"),
        (["--cache", "gs://bucket/cache"], "--cache gs://bucket/cache must be a local folder"),
        (["--dtype", "int8"], "dtype"),
    ],
)
def test_mistakes_get_one_line(tiny_run, tmp_path, words, message, capsys):
    start = ["--backbone", tiny_run, "--cache", str(tmp_path / "c")]
    assert main([*start, "--workdir", str(tmp_path / "out"), *words]) == 1
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def test_several_labels_are_refused(tiny_run, csv_folder, tmp_path, capsys):
    words = ["--dataset", f"csv:{csv_folder}", "--workdir", str(tmp_path), "--eval-split", "val"]
    assert main(["--backbone", tiny_run, *words]) == 1
    assert "several labels an image" in capsys.readouterr().err


def test_a_folder_of_others_is_not_replaced(words, result, tmp_path, capsys):
    run = tmp_path / "out" / "linear-seed0"
    run.mkdir(parents=True)
    (run / "photo.png").write_bytes(b"mine")
    assert main([*words, "--workdir", str(tmp_path / "out"), "--heads", "linear"]) == 1
    assert "linear-seed0" in capsys.readouterr().err
    assert (run / "photo.png").read_bytes() == b"mine"


def test_a_full_disk_is_seen_before_anything_is_computed(words, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main([*words, "--cache", str(tmp_path / "cache"), "--heads", "noah"]) == 1
    said = capsys.readouterr()
    assert "and 1.0 kB are free there; free space or choose another --cache" in said.err
    assert not list((tmp_path / "cache").rglob("*.bin"))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_training_that_diverges(words, tmp_path, capsys):
    words = [*words, "--workdir", str(tmp_path), "--heads", "noah", "--seeds", "0"]
    assert main([*words, "--optimizer", "sgd", "--learning-rates", "1e39"]) == 1
    assert "noah diverged with the learning rate 1e+39" in capsys.readouterr().err
    assert not (tmp_path / "noah-seed0").exists()


def test_features_beyond_float16(encoder, source, tmp_path):
    params = jax.tree.map(lambda x: x * 1e6, encoder.trained.params)
    encoder = Encoder(dataclasses.replace(encoder.trained, params=params), fresh=False)
    with pytest.raises(ValueError, match="not finite in float16, whose numbers end at 65,504"):
        _cache(tmp_path, "float16").load(encoder, source, {}, [MAP])


def test_a_name_stands_for_fresh_weights(capsys):
    encoder = load_encoder("resnet18", ema=False, settings={"crop": 64}, dtype="bfloat16")
    assert "resnet18 has fresh random weights" in capsys.readouterr().err
    assert encoder.fresh and encoder.trained.preprocessing.size == (64, 64)
    assert encoder.with_head("noah", 3).arguments["dtype"] == "bfloat16"


def test_the_defaults_of_choices_are_those_of_the_command_line(monkeypatch):
    seen = []
    monkeypatch.setattr("noah_jax.probe.program.probe", seen.append)
    assert main(["--backbone", "resnet50"]) == 0
    for field in dataclasses.fields(Choices)[1:]:
        default = getattr(Choices(backbone="resnet50"), field.name)
        if field.name == "cache":
            default = expand_home(default)
        value = getattr(seen[0], field.name)
        assert (tuple(value) if isinstance(default, tuple) else value) == default
