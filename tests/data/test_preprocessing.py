"""The record of what happens to images, and the interpolations that only evaluations have."""

import numpy as np
import pytest
from PIL import Image

from noah_jax.data import geometry
from noah_jax.data.preprocessing import (
    ARCHITECTURE,
    GIVEN,
    INTERPOLATIONS,
    SETTINGS,
    Preprocessing,
    check_setting,
    from_json,
)
from noah_jax.data.transforms import make_eval_transform
from noah_jax.errors import InputError

PUBLISHED = Preprocessing(
    size=(224, 224),
    resize=256,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    sources=dict.fromkeys(SETTINGS, ARCHITECTURE),
)


def test_nearest_is_pytorchs():
    pixels = np.random.RandomState(0).randint(0, 256, (28, 28, 3), np.uint8)
    index = np.arange(64) * 28 // 64
    got = make_eval_transform((64, 64), resize=64, interpolation="nearest")(pixels)
    np.testing.assert_array_equal(got, pixels[index[:, None], index])
    covering = make_eval_transform((64, 64), resize=None, interpolation="nearest")(pixels)
    np.testing.assert_array_equal(covering, got)
    exact = make_eval_transform((64, 64), resize=64, interpolation="nearest-exact")(pixels)
    assert (exact != got).mean() > 0.3


def test_nearest_beside_pytorch():
    torch = pytest.importorskip("torch")
    for source in range(1, 120, 7):
        for target in range(1, 300, 5):
            x = torch.arange(source, dtype=torch.float32)[None, None]
            want = torch.nn.functional.interpolate(x, size=target, mode="nearest")[0, 0]
            np.testing.assert_array_equal(geometry._nearest(source, target), want.numpy())


@pytest.mark.parametrize("interpolation", sorted(set(INTERPOLATIONS) - {"nearest"}))
def test_the_others_are_pillows(interpolation):
    pixels = np.random.RandomState(0).randint(0, 256, (30, 41, 3), np.uint8)
    name = interpolation.removesuffix("-exact").upper()
    for side in (17, 64):
        size = (int(side * 41 / 30), side)
        want = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling[name]))
        got = make_eval_transform(want.shape[:2], resize=side, interpolation=interpolation)(pixels)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("key", "value", "want"),
    [
        ("mean", 0.5, (0.5, 0.5, 0.5)),
        ("mean", "0.5", (0.5, 0.5, 0.5)),
        ("mean", "0.1, 0.2,0.3", (0.1, 0.2, 0.3)),
        ("mean", "(0.1,0.2,0.3)", (0.1, 0.2, 0.3)),
        ("std", [0.1, 0.2, 0.3], (0.1, 0.2, 0.3)),
        ("std", np.float32(0.5), (0.5, 0.5, 0.5)),
        ("resize", "64", 64),
        ("resize", 64, 64),
        ("resize", None, None),
        ("resize", "cover", None),
        ("crop", "64", (64, 64)),
        ("crop", (64, 48), (64, 48)),
        ("crop", "64,48", (64, 48)),
        ("interpolation", "nearest", "nearest"),
        ("interpolation", "Bicubic", "bicubic"),
        ("interpolation", "nearest_exact", "nearest-exact"),
    ],
)
def test_values(key, value, want):
    assert check_setting(key, value) == want


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(mean="a"), "mean must be one number or three"),
        (dict(mean=(0.1, 0.2)), "mean must be one number or three"),
        (dict(mean=""), "mean must be one number or three"),
        (dict(mean="nan"), "mean must be one number or three"),
        (dict(std="0.1,inf,0.1"), "std must be one number or three"),
        (dict(std=True), "std must be one number or three"),
        (dict(std=(0.2, 0, 0.2)), "std must be above 0"),
        (dict(std=-0.1), "std must be above 0"),
        (dict(mean=(123.7, 116.3, 103.5)), "mean must be at most 1 .*divide by 255"),
        (dict(mean=-0.1), "mean must be at most 1 and not negative"),
        (dict(std=58.4), "std must be at most 1"),
        (dict(resize=0), "resize must be pixels, 'cover' or 'squash'"),
        (dict(resize=63.5), "resize must be pixels"),
        (dict(resize="64,64"), "resize must be pixels"),
        (dict(resize=False), "resize must be pixels"),
        (dict(crop="1,2,3"), "crop must be pixels, or height,width"),
        (dict(crop="big"), "crop must be pixels"),
        (dict(crop=1e300), "crop must be pixels"),
        (dict(resize=200), "resize=200 is smaller than the crop of 224x224"),
        (dict(crop=288, resize=256), "resize=256 is smaller than the crop of 288x288"),
        (dict(interpolation="cubic"), "interpolation must be one of nearest, nearest-exact, bi"),
        (dict(interpolation=3), "interpolation must be one of"),
        (dict(size=3), "no setting 'size'"),
    ],
)
def test_what_does_not_fit_is_one_line(settings, words):
    with pytest.raises(InputError, match=words) as caught:
        PUBLISHED.override(settings, GIVEN)
    assert "\n" not in str(caught.value)


def test_what_is_not_given_stays():
    same = PUBLISHED.override({}, GIVEN)
    assert same == PUBLISHED and from_json(PUBLISHED.to_json()) == PUBLISHED
    assert PUBLISHED.describe().endswith("interpolation bilinear (architecture)")
    # The resized side keeps its ratio to the crop, unless it is given.
    smaller = PUBLISHED.override(dict(crop=64), GIVEN)
    assert (smaller.size, smaller.resize) == ((64, 64), 73)
    given = PUBLISHED.override(dict(resize=230, mean=0.5), GIVEN).override(dict(crop=128), GIVEN)
    assert (given.size, given.resize, given.mean) == ((128, 128), 230, (0.5, 0.5, 0.5))
    assert given.describe() == (
        "mean 0.5 (given), std 0.229,0.224,0.225 (architecture), resize 230 (given), crop 128x128"
        " (given), interpolation bilinear (architecture)"
    )
