"""PASCAL VOC's own layout as a source, and what is wrong with some."""

import pytest

from noah_jax.data.sources import open_eval_source, open_sources
from tests.helpers import write_voc


@pytest.fixture
def voc(tmp_path):
    """The folder of a year, in a `VOCdevkit`."""
    folder = tmp_path / "VOCdevkit/VOC2007"
    write_voc(folder)
    return folder


def _open(folder):
    return open_sources(f"voc:{folder}", train_split="trainval", eval_split="test")


def test_difficult_objects_are_ignored(voc):
    train, evaluation = _open(voc)
    # One of the classes is called train, as in VOC.
    assert train.multi_label and train.class_names == ["cat", "train"]
    values = [1, 0, -1]  # of the images' 1, -1 and 0
    expected = [[values[number % 3], values[(number + 1) % 3]] for number in range(1, 11)]
    assert [train[i][1].tolist() for i in range(len(train))] == expected[:6]
    assert [evaluation[i][1].tolist() for i in range(len(evaluation))] == expected[6:]
    assert train.file_name(0) == "000001.jpg"
    assert train[0][0] == (voc / "JPEGImages/000001.jpg").read_bytes()
    # The folder above will do while it holds one year.
    assert len(_open(voc.parent)[0]) == 6
    write_voc(voc.parent / "VOC2012")
    with pytest.raises(ValueError, match=r"holds VOC2007, VOC2012; name one of these folders"):
        _open(voc.parent)


def test_the_evaluation_alone(voc):
    source = open_eval_source(f"voc:{voc}", class_names=["cat", "dog", "train"])
    assert source[0][1].tolist() == [0, 0, -1]
    with pytest.raises(ValueError, match=r"has classes unknown to the training: train$"):
        open_eval_source(f"voc:{voc}", class_names=["cat"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "000001 2\n",
            r"cat_trainval.txt, line 1: .* 1, 0 or -1, got '000001 2'",
        ),
        ("000001\n", r"line 1: must be an image and 1, 0 or -1"),
        ("000001 1\n\n000001 1\n", r"line 3: the image 000001 is listed twice"),
        ("000001 1\n", r"train_trainval.txt lists other images than the lists of other classes"),
    ],
)
def test_lists_that_do_not_fit(voc, text, message):
    (voc / "ImageSets/Main/cat_trainval.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        _open(voc)


def test_missing_lists_and_images(voc):
    (voc / "JPEGImages/000008.jpg").unlink()
    with pytest.raises(ValueError, match=r"4 images, 1 of them are missing, such as .*000008\.jpg"):
        _open(voc)
    for name in ("cat", "train"):
        (voc / f"ImageSets/Main/{name}_test.txt").write_text("")
    with pytest.raises(ValueError, match=r"VOC2007:test lists no images"):
        _open(voc)
    with pytest.raises(ValueError, match=r"has no split 'train'; it has test, trainval"):
        open_sources(f"voc:{voc}")
    with pytest.raises(ValueError, match=r"has no ImageSets/Main; it must be VOCdevkit/VOC2007"):
        _open(voc / "JPEGImages")
