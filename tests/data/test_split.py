"""Tests the split of class folders: every class on both sides, and an image keeps its side."""

import json
import os
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image

from noah_jax.data.sources import open_eval_source, open_sources
from noah_jax.data.split import (
    FolderSplit,
    evaluation_names,
    read_split,
    split_text,
)


def _write(root, counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (i + 2, 2)).save(root / name / f"DSC_{i:04}.png")
    return root


def _names(source, root):
    return {os.path.relpath(source.describe(i), root) for i in range(len(source))}


@pytest.fixture
def photos(tmp_path):
    return _write(tmp_path / "photos", {"ant": 40, "bee": 2, "cat": 1})


def test_every_class_of_two_images_has_one_on_each_side(photos):
    train, evaluation = open_sources(f"folder:{photos}")
    assert train.class_names == evaluation.class_names == ["ant", "bee", "cat"]
    sides = [_names(source, photos) for source in (train, evaluation)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 43
    per_class = [[name.split("/")[0] for name in side] for side in sides]
    assert [per_class[0].count(name) for name in ("bee", "cat")] == [1, 1]
    assert [per_class[1].count(name) for name in ("bee", "cat")] == [1, 0]
    assert 4 <= per_class[1].count("ant") <= 12  # a fifth of 40
    labels = {train[i][1] for i in range(len(train))}
    assert labels == {0, 1, 2}
    line = train.split.describe()
    assert f"{len(train)} images to train on, {len(evaluation)} to evaluate on" in line
    assert line.endswith("only one image, to train on, have cat")


def test_the_split_is_this_one(photos):
    """Another hash would put images that runs were trained on among the evaluation images."""
    _, evaluation = open_sources(str(photos))
    expected = [f"ant/DSC_{i:04}.png" for i in (7, 18, 26, 31, 38)]
    assert {name for name in _names(evaluation, photos) if name.startswith("ant")} == set(expected)


def test_images_keep_their_side_when_others_come(photos):
    before = open_sources(str(photos))
    trained = _names(before[0], photos)
    _write(photos, {"ant": 90, "bee": 7, "cat": 30, "dog": 5})
    train, evaluation = open_sources(str(photos))
    assert len(train) + len(evaluation) == 132
    assert not _names(evaluation, photos) & (trained - {"cat/DSC_0000.png"})
    # The order in which a folder lists its images, and other classes, do not matter.
    names = [f"ant/{i}.jpg" for i in range(100)]
    assert evaluation_names(names[::-1], 0.2) == evaluation_names(names, 0.2)
    assert len(evaluation_names(names, 0.5)) > len(evaluation_names(names, 0.1)) > 0


@pytest.mark.parametrize("names", [["a/x"], ["a/x", "a/y"], ["a/x", "a/y", "a/z"]])
@pytest.mark.parametrize("fraction", [1e-9, 0.2, 0.999999])
def test_one_image_at_least_is_left_on_each_side(names, fraction):
    count = len(evaluation_names(names, fraction))
    assert 1 <= count < len(names) if len(names) > 1 else count == 0


def test_accents_are_the_same_however_they_are_composed():
    names = [f"a/{i}\u00e9.jpg" for i in range(40)]
    composed = {name.replace("\u00e9", "e\u0301") for name in evaluation_names(names, 0.3)}
    decomposed = [name.replace("\u00e9", "e\u0301") for name in names]
    assert evaluation_names(decomposed, 0.3) == composed
    assert evaluation_names(["a/caf\udce9.jpg", "a/b.jpg"], 0.2)  # a name that is no UTF-8


def test_folders_with_their_own_splits_are_taken_as_they_are(photos, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(photos, both / "train")
    train, evaluation = open_sources(str(both))  # there is only train/
    assert evaluation.class_names == train.class_names and len(train) + len(evaluation) == 43
    shutil.copytree(photos, both / "val")
    train, evaluation = open_sources(str(both))
    assert (len(train), len(evaluation)) == (43, 43)


@pytest.mark.parametrize("names", [("training", "validation"), ("test",), ("val", "cat")])
def test_splits_of_other_names_are_no_classes(photos, tmp_path, names):
    for name in names:
        shutil.copytree(photos, tmp_path / "other" / name)
    with pytest.raises(ValueError, match=f"no split 'train'; it has {', '.join(sorted(names))}"):
        open_sources(str(tmp_path / "other"))


def test_a_class_may_be_called_train(photos):
    _write(photos, {"train": 6, "test": 6})
    train, evaluation = open_sources(str(photos))
    assert train.class_names == ["ant", "bee", "cat", "test", "train"]
    assert len(train) + len(evaluation) == 55


def test_what_cannot_be_split_is_said(tmp_path):
    _write(tmp_path / "one", {"ant": 1, "bee": 1})
    with pytest.raises(ValueError, match=r"no class of .* has two images"):
        open_sources(str(tmp_path / "one"))
    (tmp_path / "empty" / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images in class folders"):
        open_sources(str(tmp_path / "empty"))


def test_a_run_remembers_its_split(photos, tmp_path):
    train, evaluation = open_sources(str(photos))
    run = epath.Path(tmp_path)
    assert read_split(run) is None
    (run / "split.json").write_text(split_text(train.split))
    split = read_split(run)
    assert split == train.split

    def evaluated(folder):
        return _names(open_eval_source(str(folder), trained_on=split), folder)

    assert evaluated(photos) == _names(evaluation, photos)
    # A copy has the same images; images of the same names and other sizes are others.
    copy = shutil.copytree(photos, tmp_path / "copy")
    assert evaluated(copy) == evaluated(photos)
    for file in copy.rglob("*.png"):
        Image.fromarray(np.eye(20, dtype=bool)).save(file)
    assert len(evaluated(copy)) == 43
    # In the run's own folder an image that was edited has still been trained on.
    for file in photos.rglob("*.png"):
        Image.fromarray(np.eye(20, dtype=bool)).save(file)
    assert evaluated(photos) == _names(evaluation, photos)
    # A resumed run goes on with the split that it remembers, whatever the rule says.
    swapped = FolderSplit(split.folder, split.fraction, split.evaluation, split.training)
    train, _ = open_sources(str(photos), remembered=swapped)
    assert train.split.training.keys() == split.evaluation.keys()
    with pytest.raises(ValueError, match="trained on all images"):
        everything = FolderSplit(str(photos), 0.2, split.training | split.evaluation, {})
        open_eval_source(str(photos), trained_on=everything)
    (run / "split.json").write_text(json.dumps({"folder": 1}))
    with pytest.raises(ValueError, match=r"split\.json cannot be read"):
        read_split(run)
