"""Compares erasing, mixup and cutmix with results by hand and with timm's rules in NumPy."""

import functools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.compilation import QUICK_COMPILE
from noah_jax.config import default_config
from noah_jax.train.mixing import (
    Mixing,
    cutmix_box,
    draw_erasing,
    draw_mixing,
    erase,
    make_augment,
    mix_images,
    mix_targets,
    smooth,
)
from tests.helpers import ROOT

KEY = jax.random.key(0)
DRAWS = 20_000
NORMALISATION = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def _jit(function, **arguments):
    return jax.jit(functools.partial(function, **arguments), compiler_options=QUICK_COMPILE)


def _images(batch=6, size=(4, 5)):
    return jnp.asarray(np.random.RandomState(0).randn(batch, *size, 3), jnp.float32)


def _same_distribution(actual, expected):
    """The test of Kolmogorov and Smirnov; one in ten thousand equal pairs fails it."""
    actual, expected = (
        np.sort(np.asarray(actual, np.float64)),
        np.sort(np.asarray(expected, np.float64)),
    )
    values = np.concatenate([actual, expected])
    shares = [np.searchsorted(x, values, side="right") / len(x) for x in (actual, expected)]
    limit = 2.23 * math.sqrt(1 / len(actual) + 1 / len(expected))
    assert np.abs(shares[0] - shares[1]).max() < limit


def test_smoothed_targets():
    targets = smooth(jnp.array([1, 3]), 4, 0.1)
    np.testing.assert_allclose(
        targets, [[0.025, 0.925, 0.025, 0.025], [0.025, 0.025, 0.025, 0.925]], rtol=1e-6
    )
    np.testing.assert_array_equal(smooth(jnp.array([2]), 3, 0.0), [[0, 0, 1]])


def test_erasing_fixed_rectangles():
    images = _images(3)
    noise = images + 100
    boxes = jnp.array([[1, 3, 0, 2], [0, 0, 0, 0], [3, 4, 1, 5]])
    expected = np.array(images)
    expected[0, 1:3, 0:2] += 100
    expected[2, 3:4, 1:5] += 100
    np.testing.assert_array_equal(erase(images, boxes, noise), expected)


def _erasing_by_the_rules(count, height, width, prob, random):
    """timm's loop for each image, on Python numbers."""
    boxes = np.zeros((count, 4), int)
    for box in boxes:
        if random.rand() > prob:
            continue
        for _ in range(10):
            area = random.uniform(0.02, 1 / 3) * height * width
            aspect = math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < width and h < height:
                top, left = random.randint(0, height - h + 1), random.randint(0, width - w + 1)
                box[:] = top, top + h, left, left + w
                break
    return boxes


@pytest.mark.parametrize("size", [(224, 224), (8, 60)])  # on the second many tries fail
def test_erased_rectangles_are_distributed_as_timms(size):
    actual = np.asarray(_jit(draw_erasing, batch=DRAWS, size=size, prob=0.75)(KEY))
    expected = _erasing_by_the_rules(DRAWS, *size, 0.75, np.random.RandomState(0))
    erased = [boxes[boxes[:, 1] > boxes[:, 0]] for boxes in (actual, expected)]
    shares = [len(boxes) / DRAWS for boxes in erased]
    assert abs(shares[0] - shares[1]) < 0.015  # four standard deviations
    assert abs(shares[1] - 0.75) < 0.02
    actual, expected = erased
    assert (actual[:, (0, 2)] >= 0).all() and (actual[:, 1] <= size[0]).all()
    assert (actual[:, 3] <= size[1]).all()
    for measure in (
        lambda b: b[:, 1] - b[:, 0],
        lambda b: b[:, 3] - b[:, 2],
        lambda b: (b[:, 1] - b[:, 0]) * (b[:, 3] - b[:, 2]),
        lambda b: b[:, 0] / (size[0] - (b[:, 1] - b[:, 0])),
        lambda b: b[:, 2] / (size[1] - (b[:, 3] - b[:, 2])),
    ):
        _same_distribution(measure(actual), measure(expected))


def test_cutmix_box_is_clipped_and_its_weight_corrected():
    weight = jnp.array([0.75, 0.75, 0.75, 1.0, 0.0])
    row, column = jnp.array([4, 0, 7, 3, 4]), jnp.array([6, 0, 11, 3, 6])
    boxes, kept = cutmix_box(weight, row, column, (8, 12))  # of 4 x 6 where they fit
    np.testing.assert_array_equal(
        boxes, [[2, 6, 3, 9], [0, 2, 0, 3], [5, 8, 8, 12], [3, 3, 3, 3], [0, 8, 0, 12]]
    )
    np.testing.assert_allclose(kept, [0.75, 1 - 6 / 96, 1 - 12 / 96, 1, 0], rtol=1e-6)


def test_mixing_with_fixed_draws():
    images, targets = _images(6), jnp.eye(6)
    mixing = Mixing(
        jnp.array([0.75, 0.9, 1.0]),
        jnp.array([[0, 0, 0, 0], [1, 2, 3, 5], [0, 0, 0, 0]]),
        jnp.array([False, True, False]),
    )
    mixed, soft = np.asarray(mix_images(images, mixing)), np.asarray(mix_targets(targets, mixing))
    images, targets = np.asarray(images), np.asarray(targets)
    # Groups of two: each with its neighbour.
    np.testing.assert_allclose(mixed[0], 0.75 * images[0] + 0.25 * images[1], rtol=1e-5)
    np.testing.assert_allclose(mixed[1], 0.75 * images[1] + 0.25 * images[0], rtol=1e-5)
    cut = images[2].copy()
    cut[1:2, 3:5] = images[3][1:2, 3:5]
    np.testing.assert_array_equal(mixed[2], cut)
    np.testing.assert_array_equal(mixed[4:], images[4:])
    np.testing.assert_allclose(soft[0], 0.75 * targets[0] + 0.25 * targets[1], rtol=1e-6)
    np.testing.assert_allclose(soft[3], 0.9 * targets[3] + 0.1 * targets[2], rtol=1e-6)
    # One group of six: with the mirrored place.
    whole = Mixing(jnp.array([0.5]), jnp.zeros((1, 4), jnp.int32), jnp.array([False]))
    np.testing.assert_allclose(
        mix_images(jnp.asarray(images), whole), (images + images[::-1]) / 2, rtol=1e-5, atol=1e-6
    )


def _cutmix_by_the_rules(count, size, alpha, random):
    boxes, weights = np.zeros((count, 4), int), np.zeros(count)
    for i, weight in enumerate(random.beta(alpha, alpha, count)):
        half = [int(n * math.sqrt(1 - weight)) // 2 for n in size]
        centre = [random.randint(0, n) for n in size]
        for axis in (0, 1):
            low, high = centre[axis] - half[axis], centre[axis] + half[axis]
            boxes[i, 2 * axis : 2 * axis + 2] = np.clip([low, high], 0, size[axis])
        top, bottom, left, right = boxes[i]
        weights[i] = 1 - (bottom - top) * (right - left) / (size[0] * size[1])
    return boxes, weights


def test_mixing_is_distributed_as_timms():
    size = (64, 96)
    random = np.random.RandomState(0)
    arguments = {"mixup": 0.8, "cutmix": 1.0, "prob": 0.9, "switch_prob": 0.3}
    drawn = _jit(draw_mixing, mix_groups=DRAWS, size=size, **arguments)(KEY)
    weight, box, cut = map(np.asarray, drawn)
    mixed = cut | (weight < 1)
    assert abs(mixed.mean() - 0.9) < 0.01 and abs(cut.mean() - 0.27) < 0.013
    assert (weight[~mixed] == 1).all() and (box[~cut] == 0).all()
    _same_distribution(weight[mixed & ~cut], random.beta(0.8, 0.8, DRAWS))
    # Variance of Beta(0.8, 0.8), which quantiles see less of.
    assert abs(weight[mixed & ~cut].var() - 1 / (4 * (2 * 0.8 + 1))) < 0.003
    boxes, weights = _cutmix_by_the_rules(DRAWS, size, 1.0, random)
    _same_distribution(weight[cut], weights)
    for side in range(4):
        _same_distribution(box[cut][:, side], boxes[:, side])
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    np.testing.assert_allclose(weight[cut], 1 - area[cut] / (64 * 96), rtol=1e-6)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 1.0)])
def test_one_kind_alone_is_always_used(mixup, cutmix):
    drawn = _jit(draw_mixing, mix_groups=1000, size=(32, 32), mixup=mixup, cutmix=cutmix)(KEY)
    assert (np.asarray(drawn.cut) == bool(cutmix)).all()
    assert (np.asarray(drawn.weight) < 1).mean() > 0.95


def test_cutout():
    images = jnp.full((64, 20, 30, 3), 99.0)
    cut = np.asarray(_augment(64, (20, 30), cutout=0.5)(KEY, images, jnp.zeros(64, int))[0])
    colours = set()
    for number, image in enumerate(cut):
        rows, columns = ((image != 99).any(axes).nonzero()[0] for axes in ((1, 2), (0, 2)))
        # The square is half as high and wide as the image, or less where the edge clips it.
        assert 5 <= len(rows) <= 10 and len(columns) <= 14, number
        assert len(rows) == 10 or rows[0] == 0 or rows[-1] == 19
        inside = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (inside == inside[0, 0]).all()
        pixel = inside[0, 0] * NORMALISATION["std"] + NORMALISATION["mean"]
        assert (pixel > -1e-6).all() and (pixel < 1 + 1e-6).all()
        colours.add(tuple(pixel))
    assert len(colours) == 64
    # The other draws are what they are without.
    plain, also = (
        _augment(64, (20, 30), mixup=0.5, **more)(KEY, images, jnp.arange(64) % 10)[1]
        for more in ({}, {"cutout": 0.5})
    )
    np.testing.assert_array_equal(plain, also)


def _augment(batch_size=8, size=(4, 5), **values):
    config = default_config()
    config.update(values)
    augment = make_augment(
        config, num_classes=10, batch_size=batch_size, size=size, **NORMALISATION
    )
    return jax.jit(augment, compiler_options=QUICK_COMPILE)


def test_without_rows_nothing_happens():
    images = _images(8)
    same, targets = _augment()(KEY, images, jnp.arange(8))
    np.testing.assert_array_equal(same, images)
    assert targets is None
    same, targets = _augment(smoothing=0.2)(KEY, images, jnp.arange(8))
    np.testing.assert_array_equal(same, images)
    np.testing.assert_allclose(targets, smooth(jnp.arange(8), 10, 0.2))


def test_noise_is_normal_and_erased_before_mixing():
    size, images = (64, 64), jnp.full((8, 64, 64, 3), 7.0)
    labels = jnp.arange(8)
    erased, _ = _augment(size=size, erase_prob=1.0)(KEY, images, labels)
    values = np.asarray(erased)[np.asarray(erased) != 7]
    assert values.size > 3000
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1
    share = (np.asarray(erased) != 7).mean((1, 2, 3))
    assert ((share > 0.015) & (share < 0.34)).all()
    # Mixed halfway, the rectangle of an image shows in its partner too, not on its own.
    mixed, targets = _augment(size=size, erase_prob=1.0, mixup=1.0)(KEY, images, labels)
    weight = np.asarray(targets)[0, 0]
    expected = weight * erased + (1 - weight) * erased[::-1]
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-4)


def test_each_group_has_a_draw_of_its_own():
    labels = jnp.arange(8)
    _, targets = _augment(mixup=1.0, mix_group=2)(KEY, _images(8), labels)
    targets = np.asarray(targets)
    for first in range(0, 8, 2):
        assert set(np.flatnonzero(targets[first])) == {first, first + 1}
    assert len({round(float(targets[i, i]), 5) for i in range(0, 8, 2)}) == 4
    other = _augment(mixup=1.0, mix_group=2)(jax.random.key(1), _images(8), labels)[1]
    assert not np.allclose(targets, other)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"erase_prob": 1.5}, "erase_prob must be in 0..1, got 1.5"),
        ({"mix_switch_prob": -0.1}, "mix_switch_prob must be in 0..1"),
        ({"smoothing": 2.0}, "smoothing must be in 0..1"),
        ({"mixup": -1.0}, "mixup is the alpha of a Beta distribution"),
        ({"cutmix": math.nan}, "cutmix is the alpha"),
        ({"mixup": 1.0, "mix_group": 3}, "mix_group=3 must be even"),
        ({"mixup": 1.0, "mix_group": 6}, "divide batch_size=8"),
        ({"mix_group": 4}, "mix_group=4 without mixing"),
    ],
)
def test_bad_values(values, words):
    with pytest.raises(ValueError, match=words):
        _augment(**values)


# Run with four CPU devices: prints for groups of 4 and of 16 in a batch of 16 whether devices
# talk to each other.
COLLECTIVES = """
import jax, jax.numpy as jnp
from noah_jax import distributed
from noah_jax.train.mixing import Mixing, mix_images

mesh = distributed.make_mesh()
sharding = distributed.batch_sharding(mesh)
images = jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32, sharding=sharding)
for count in (4, 1):
    mixing = Mixing(jnp.ones(count), jnp.zeros((count, 4), jnp.int32), jnp.zeros(count, bool))
    compiled = jax.jit(mix_images, out_shardings=sharding).lower(images, mixing).compile()
    text = compiled.as_text()
    print(any(x in text for x in ("all-gather", "all-to-all", "all-reduce", "collective-permute")))
"""


def test_no_image_leaves_a_device_that_holds_whole_groups():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
    }
    ran = subprocess.run(
        [sys.executable, "-c", COLLECTIVES],
        check=True,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == ["False", "True"]
