"""A run remembers its data: other data are refused, or taken and said, when it goes on."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from noah_jax import create_model, load_model
from noah_jax.data.csv_files import CsvSource
from noah_jax.data.record import record_data
from noah_jax.data.source import SAMPLE
from noah_jax.data.sources import open_sources
from noah_jax.errors import InputError
from noah_jax.inference.initial_weights import load_initial_weights
from noah_jax.runs.data_file import check_data, describe_classes
from noah_jax.train import train


@pytest.fixture
def half_run(tiny_run, class_folders, tmp_path):
    """A run that was stopped after 6 of 12 steps, on class folders of its own, and its config."""
    data = shutil.copytree(class_folders, tmp_path / "data")
    run = shutil.copytree(
        tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("results.json", "12")
    )
    config = json.loads((run / "config.json").read_text())
    config["dataset"] = str(data)
    (run / "config.json").write_text(json.dumps(config))
    return run, data, ConfigDict(config)


def _rename_class(data, old, new):
    for split in ("train", "val"):
        (data / split / old).rename(data / split / new)


def _add_class(data):
    for split in ("train", "val"):
        shutil.copytree(data / split / "cat", data / split / "dog")


def _add_images(data):
    for i in range(5):
        shutil.copy(data / "train/bee/00.png", data / f"train/bee/9{i}.png")


CHANGES = {
    "renamed": (
        lambda data: _rename_class(data, "bee", "bug"),
        "other data: the class 'bee' is now 'bug'; give it its data back",
    ),
    "renamed and in another order": (
        lambda data: _rename_class(data, "ant", "dog"),
        "other data: the class 'ant' is now 'dog' and the classes are in another order; give",
    ),
    "one class more": (
        _add_class,
        "other classes: the class 'dog' is new; the training images were 60 and are 80; .*"
        "init_from=",
    ),
    "one class less": (
        lambda data: [shutil.rmtree(data / split / "ant") for split in ("train", "val")],
        "other classes: the class 'ant' is gone; ",
    ),
    "more images": (
        _add_images,
        r"other data: the training images were 60 and are 65 \('bee' 20 and 25\); give",
    ),
    "fewer images of the evaluation": (
        lambda data: (data / "val/cat/00.png").unlink(),
        r"other data: the evaluation images were 21 and are 20 \('cat' 7 and 6\); give",
    ),
    "another order": (
        lambda data: (data / "train/cat/00.png").rename(data / "train/cat/99.png"),
        "other data: the training images are as many, but other files or in another order; give",
    ),
    "another class": (
        lambda data: (data / "train/cat/00.png").rename(data / "train/ant/99.png"),
        "other data: the training images are as many, but other files or in another order; give",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused(change, half_run):
    run, data, config = half_run
    make, words = CHANGES[change]
    make(data)
    before = {path: path.read_bytes() for path in run.rglob("*.json")}
    with pytest.raises(InputError, match=words) as caught:
        train(config, str(run))
    assert "\n" not in str(caught.value) and str(run) in str(caught.value)
    if "class " not in change.replace("another class", ""):
        assert "--config.data.allow_change=True" in str(caught.value)
    assert {path: path.read_bytes() for path in run.rglob("*.json")} == before


def test_a_deliberate_change_goes_on_aloud(half_run, capsys):
    run, data, config = half_run
    _rename_class(data, "bee", "bug")
    config.data.allow_change = True
    train(config, str(run))
    said = capsys.readouterr().out
    assert "the data changed, as data.allow_change=True allows: the class 'bee' is now" in said
    assert load_model(str(run))[0].class_names == ("ant", "bug", "cat")
    assert check_data(epath.Path(run), _record(data), allow_change=False) == []


def test_the_same_data_go_on_without_a_word(half_run, tiny_run, capsys):
    run, _, config = half_run
    train(config, str(run))
    said = capsys.readouterr().out
    assert "data changed" not in said and "data.json" not in said
    results = [json.loads((pathlib.Path(r) / "results.json").read_text()) for r in (run, tiny_run)]
    assert results[0] == results[1]


def _record(folder):
    return record_data(*open_sources(str(folder)))


def test_a_run_of_an_earlier_version_gets_its_record(half_run):
    run, data, config = half_run
    (run / "data.json").unlink()
    (line,) = check_data(epath.Path(run), _record(data), allow_change=False)
    assert "is of an earlier version and does not say which images" in line
    # Even such a run knows its classes.
    _rename_class(data, "bee", "wasp")
    with pytest.raises(InputError, match="the class 'bee' is now 'wasp'"):
        train(config, str(run))
    (run / "data.json").write_text("[")
    with pytest.raises(InputError, match=r"data\.json cannot be read"):
        train(config, str(run))


def test_the_record_does_not_depend_on_the_place(class_folders, csv_folder, tmp_path):
    copy = shutil.copytree(class_folders, tmp_path / "a/b")
    record = _record(class_folders)
    assert _record(copy) == record and _record(f"{tmp_path}/a/../a/b") == record
    assert record["train"]["images_by_class"] == [20, 20, 20]
    files = [CsvSource(epath.Path(csv_folder) / f"{split}.csv") for split in ("train", "val")]
    labels = record_data(*files)
    assert labels["train"]["fingerprint"] != labels["eval"]["fingerprint"]
    files[0].files[3] = (files[0].files[3][0], 1 - np.abs(files[0].files[3][1]))
    assert record_data(*files)["train"]["fingerprint"] != labels["train"]["fingerprint"]


def test_tfds_has_name_version_split_and_count(tmp_path):
    record = record_data(*open_sources(SAMPLE))
    assert record["train"] == {"images": 10_000, "name": "fashion_mnist_sample/1.0.0:train"}
    other = json.loads(json.dumps(record))
    other["train"]["name"] = "fashion_mnist_sample/1.1.0:train"
    (tmp_path / "data.json").write_text(json.dumps(other))
    words = r"the training images were fashion_mnist_sample/1\.1\.0:train and are .*1\.0\.0:train"
    with pytest.raises(InputError, match=words):
        check_data(epath.Path(tmp_path), record, allow_change=False)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        (["a", "b"], ["a", "b"], ""),
        (["a", "b"], ["b", "a"], "the classes are in another order"),
        (["a", "b"], ["a", "c"], "the class 'b' is now 'c'"),
        (
            ["a", "b"],
            ["b", "c"],
            "the class 'a' is now 'c' and the classes are in another order",
        ),
        (["a"], ["a", "c"], "the class 'c' is new"),
        (["a", "b", "c"], ["a", "d"], "the class 'd' is new and the class 'b', 'c' is gone"),
    ],
)
def test_classes_in_words(before, now, words):
    assert describe_classes(before, now) == words


def test_the_head_of_other_classes_is_not_taken(tiny_run):
    model = create_model(
        "noah_resnet18",
        num_classes=3,
        image_size=28,
        head_num=2,
        **dict(stem="small", width=4, depths=(1, 1, 1, 1)),
    )

    def initial(names, **options):
        weights = load_initial_weights(tiny_run, model, class_names=names, **options)
        return any(key.startswith("head/") for key in weights.params), "\n".join(weights.lines)

    taken, lines = initial(["ant", "bee", "cat"])
    assert taken and "head" not in lines
    for names, words in (
        (["ant", "bee", "dog"], "but the class 'cat' is now 'dog'"),
        (["cat", "bee", "ant"], "but the classes are in another order"),
    ):
        taken, lines = initial(names)
        assert not taken and f"the head is fresh: as many classes there, {words}" in lines
        taken, lines = initial(names, keep_head=True)
        assert taken and "the head is taken over, as data.allow_change=True says" in lines


def test_another_normalisation_is_said(tiny_run):
    model, _, _ = load_model(tiny_run)
    own = model.preprocessing
    other = own.override({"mean": 0.5, "std": 0.25}, "run")
    for preprocessing, count in ((own, 0), (other, 1)):
        initial = load_initial_weights(tiny_run, model, preprocessing=preprocessing)
        said = [
            line for line in initial.lines if "those weights expect images of mean 0.485" in line
        ]
        assert len(said) == count
    assert "--config.data.mean='(0.485,0.456,0.406)' --config.data.std='(0.229," in said[0]


def test_the_head_of_nameless_classes_is_taken_aloud(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    description = json.loads((folder / "model.json").read_text())
    del description["class_names"]
    (folder / "model.json").write_text(json.dumps(description))
    model, _, _ = load_model(tiny_run)
    initial = load_initial_weights(str(folder), model, class_names=["x", "y", "z"])
    assert "head/query/kernel" in initial.params
    assert any("as many classes there, whose names are not known" in x for x in initial.lines)
