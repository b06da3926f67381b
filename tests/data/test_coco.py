"""COCO's annotation files as a source, and what is wrong with some."""

import json
import re
import shutil

import pytest

from noah_jax.data.coco import CocoSource
from noah_jax.data.sources import open_eval_source, open_sources
from tests.helpers import write_coco


@pytest.fixture
def coco(tmp_path):
    """A folder in COCO's own layout."""
    write_coco(tmp_path)
    return tmp_path


def _labels(number):
    """The classes of an image in the order of the file's categories: person, toothbrush, car."""
    person, car, toothbrush = (
        int(number % 4 != 0 and (number + position) % 3 != 0) for position in range(3)
    )
    return [person, toothbrush, car]


def test_labels_are_the_categories_of_an_images_annotations(coco):
    train, evaluation = open_sources(f"coco:{coco}")
    assert train.multi_label and train.class_names == ["person", "toothbrush", "car"]
    # Images without annotations are left out; crowds count.
    numbers = [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert [train.file_name(i) for i in range(len(train))] == [f"{n:012}.jpg" for n in numbers]
    assert [train[i][1].tolist() for i in range(len(train))] == [_labels(n) for n in numbers]
    assert train[0][0] == (coco / "train2017/000000000001.jpg").read_bytes()
    assert [evaluation[i][1].tolist() for i in range(6)] == [_labels(n) for n in numbers[:6]]
    assert len(evaluation) == 6 and evaluation.class_names == train.class_names


def test_what_is_left_out_is_told(coco, capsys):
    CocoSource(coco, "train2017")
    assert "left out 3 of 12 images, which have no annotations" in capsys.readouterr().err


def test_the_evaluation_alone_has_the_trainings_classes(coco):
    (coco / "annotations/instances_train2017.json").unlink()
    names = ["car", "cat", "person", "toothbrush"]
    source = open_eval_source(f"coco:{coco}", class_names=names)
    person, toothbrush, car = _labels(1)
    assert source[0][1].tolist() == [car, 0, person, toothbrush]
    assert open_eval_source(f"coco:{coco}").class_names == ["person", "toothbrush", "car"]
    with pytest.raises(ValueError, match=r"unknown to the training: toothbrush$"):
        open_eval_source(f"coco:{coco}", class_names=["car", "person"])


def test_images_may_lie_in_a_folder_of_their_own(coco):
    (coco / "images").mkdir()
    for split in ("train2017", "val2017"):
        (coco / split).rename(coco / "images" / split)
    train, _ = open_sources(f"coco:{coco}")
    assert train.describe(0) == f"{coco}/images/train2017/000000000001.jpg"
    shutil.rmtree(coco / "images/val2017")
    with pytest.raises(ValueError, match=f"images of val2017 are missing: .* {coco}/val2017"):
        open_sources(f"coco:{coco}")


def test_two_years_in_a_folder(coco):
    write_coco(coco, "2014")
    with pytest.raises(ValueError, match=r"no split 'train'; it has train2014, train2017, val2014"):
        open_sources(f"coco:{coco}")
    train, evaluation = open_sources(f"coco:{coco}", train_split="train2014", eval_split="val2017")
    assert "train2014" in train.name and "val2017" in evaluation.name


def _changed(change):
    """Returns what changes the content of the file."""
    return lambda content: change(content) or content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [c], "must hold a JSON object"),
        (_changed(lambda c: c.pop("categories") and None), "must have a list 'categories', .* has"),
        (_changed(lambda c: c.update(images=3)), "must have a list 'images'"),
        (_changed(lambda c: c["images"].append(3)), "'id' of entry 12 in 'images' must be a whole"),
        (
            _changed(lambda c: c["images"][1].pop("file_name") and None),
            "'file_name' of entry 1 in 'images' must be a text, got null",
        ),
        (
            _changed(lambda c: c["annotations"][2].update(image_id="7")),
            "'image_id' of entry 2 in 'annotations' must be a whole number, got \"7\"",
        ),
        (
            _changed(lambda c: c["annotations"][2].pop("category_id") and None),
            "'category_id' of entry 2 in 'annotations' must be a whole number, got null",
        ),
        (
            _changed(lambda c: c["annotations"][0].update(image_id=5)),
            "annotation 0 has the image_id 5, which nothing in the file has",
        ),
        (
            _changed(lambda c: c["annotations"][1].update(category_id=2)),
            "annotation 1 has the category_id 2, which nothing",
        ),
        (
            _changed(lambda c: c["images"][1].update(id=1012)),
            "two entries in 'images' have the id 1012",
        ),
        (
            _changed(lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"])),
            "two entries in 'images' have the file_name 000000000012.jpg",
        ),
        (
            _changed(lambda c: c["categories"][1].update(id=1)),
            "two entries in 'categories' have the id 1",
        ),
        (
            _changed(lambda c: c["categories"][1].update(name="car")),
            "two entries in 'categories' have the name car",
        ),
        (
            _changed(lambda c: c["annotations"][1].update(id=1)),
            "two entries in 'annotations' have the id 1",
        ),
        (_changed(lambda c: c["annotations"].clear()), "has no annotations"),
    ],
)
def test_annotations_that_do_not_fit(coco, change, message):
    file = coco / "annotations/instances_train2017.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}.*{message}") as error:
        CocoSource(coco, "train2017")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", '{"images": [1,]}', "[" * 100_000, "9" * 5000])
def test_broken_json(coco, text):
    file = coco / "annotations/instances_train2017.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"{file} is no valid JSON \(.*\); get it again"):
        open_sources(f"coco:{coco}")


def test_missing_images_and_annotations(coco):
    (coco / "train2017/000000000012.jpg").unlink()  # has no annotation, so nobody misses it
    open_sources(f"coco:{coco}")
    (coco / "train2017/000000000003.jpg").unlink()
    with pytest.raises(ValueError, match=r"9 images, 1 of them are missing, such as .*003\.jpg"):
        open_sources(f"coco:{coco}")
    with pytest.raises(ValueError, match=r"none does not exist"):
        open_sources(f"coco:{coco}/none")
    with pytest.raises(ValueError, match=r"has no annotations/instances_\*\.json; it must hold"):
        open_sources(f"coco:{coco}/train2017")
