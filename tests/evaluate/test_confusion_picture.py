"""Tests the picture of a confusion matrix: for few classes, for many, for any names."""

import numpy as np
import pytest

from noah_jax.evaluate import confusion_picture
from noah_jax.evaluate.confusion_picture import draw_confusion


def _cells(picture: np.ndarray, count: int) -> set[tuple[int, ...]]:
    """The colours of a picture that fill at least `count` pixels."""
    colours, times = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(colour) for colour, n in zip(colours.tolist(), times, strict=True) if n >= count}


def test_numbers_where_they_fit(monkeypatch):
    written = []
    write = confusion_picture.write
    monkeypatch.setattr(
        confusion_picture,
        "write",
        lambda pixels, labels: (
            written.extend(label.text for label in labels) or write(pixels, labels)
        ),
    )
    counts = np.array([[6, 1, 0], [0, 7, 0], [2, 0, 123]])
    picture = draw_confusion(counts, ["ant", "Käfer", "a very long name " * 9], "runs/q on test")
    assert sorted(written[:9]) == sorted(map(str, counts.ravel()))
    assert {"ant", "Käfer"} < set(written) and any(text.endswith("…") for text in written)
    assert (picture[:, :20] == 255).all() and (picture[-20:] == 255).all()
    # The colours of 6/7, 1/7 and 7/7, by the square root.
    for fraction in (6 / 7, 1 / 7, 1):
        colour = confusion_picture._colours(np.array([fraction]))[0]
        assert tuple(colour.tolist()) in _cells(picture, 1000)

    written.clear()
    draw_confusion(np.eye(100, dtype=int), [f"class {i}" for i in range(100)])
    assert "1" not in written and {"0", "10", "90"} < set(written)  # indices beside small cells


@pytest.mark.parametrize("classes", [1, 60, 1000, 2500])
def test_any_number_of_classes(classes):
    counts = np.eye(classes, dtype=int)
    counts[0, -1] = 9
    picture = draw_confusion(counts, [f"class {i}" for i in range(classes)])
    assert 400 < picture.shape[1] < 1300 and picture.shape[0] < 1400
    # The one confusion is seen, whatever the size of a cell.
    colour = confusion_picture._colours(np.array([0.9 if classes > 1 else 1.0]))[0]
    assert (picture == colour).all(2).any()


def test_a_class_without_images():
    picture = draw_confusion(np.zeros((2, 2), int), ["a", "b"])
    assert picture.min() < 100 and picture.dtype == np.uint8
