"""Crops, resizes and colour jitter, and the transforms that are made of them."""

import dataclasses
import itertools
import math
import pathlib

import numpy as np
import pytest
from PIL import Image

from noah_jax.config import default_config
from noah_jax.data import geometry
from noah_jax.data.color import color_jitter, draw_color_jitter
from noah_jax.data.decoding import decode, decode_and_transform
from noah_jax.data.randaugment import RandAugment, rand_augment
from noah_jax.data.sampler import image_random
from noah_jax.data.transforms import TrainTransform, make_eval_transform
from noah_jax.train.setup import build


def _photograph(golden, name: str = "china.jpg") -> np.ndarray:
    return decode((pathlib.Path(golden) / "images" / name).read_bytes())


class _Replayed:
    """A random generator that returns the values torchvision drew."""

    def __init__(self, draws: np.ndarray):
        self._draws = iter(draws[~np.isnan(draws)])
        self._ranges = itertools.cycle([(0.08, 1.0), (math.log(3 / 4), math.log(4 / 3))])

    def random(self):
        low, high = next(self._ranges)
        value = next(self._draws)
        assert low - 1e-6 <= value <= high + 1e-6
        return (value - low) / (high - low)

    def integers(self, low, high):
        value = next(self._draws)
        assert low <= value < high
        return value

    def used_up(self) -> bool:
        return next(self._draws, None) is None


@pytest.mark.parametrize(
    ("pipeline", "resize", "interpolation", "count"),
    [("cnn", 256, "bilinear", 7), ("deit", 256, "bicubic", 2), ("mlp", 248, "bicubic", 2)],
)
def test_evaluation_is_bit_equal_to_torchvision(golden, pipeline, resize, interpolation, count):
    transform = make_eval_transform((224, 224), resize=resize, interpolation=interpolation)
    with np.load(golden / "preprocess.npz") as arrays:
        keys = [key for key in arrays if key.startswith(f"{pipeline}/")]
        assert len(keys) == count
        for key in keys:
            image = _photograph(golden, key.removeprefix(f"{pipeline}/"))
            np.testing.assert_array_equal(transform(image), arrays[key], err_msg=key)


def test_crops_and_flips_are_bit_equal_to_torchvision(golden):
    with np.load(golden / "torchvision.npz") as arrays:
        crops = [key for key in arrays if key.startswith("crop/")]
        assert len(crops) == 16
        for key in crops:
            _, name, box, interpolation = key.split("/")
            box = tuple(int(edge) for edge in box.split(","))
            crop = geometry.resized_crop(_photograph(golden, name), box, (40, 48), interpolation)
            np.testing.assert_array_equal(crop, arrays[key], err_msg=key)
        centres = [key for key in arrays if key.startswith("centre/")]
        assert len(centres) == 10
        for key in centres:
            _, name, size = key.split("/")
            size = tuple(int(side) for side in size.split(","))
            crop = geometry.center_crop(arrays[f"small/{name}"], size)
            np.testing.assert_array_equal(crop, arrays[key], err_msg=key)
        flipped = geometry.flip(arrays["small/china.jpg"])
        np.testing.assert_array_equal(flipped, arrays["flip/china.jpg"])


@pytest.mark.parametrize("width_height", [(500, 375), (64, 1000), (640, 30), (9, 7), (1, 1)])
def test_random_boxes_are_torchvisions_given_its_draws(golden, width_height):
    with np.load(golden / "torchvision.npz") as arrays:
        rows = arrays["draws/{},{}".format(*width_height)]
    assert len(rows) == 40
    for row in rows:
        replayed = _Replayed(row[4:])
        assert geometry.draw_crop(width_height, replayed) == tuple(row[:4])
        assert replayed.used_up()


def test_the_distribution_of_random_boxes():
    random = np.random.default_rng(0)
    side, area, ratio = 1000, (0.1, 0.3), (0.67, 1.5)  # every draw of these fits
    boxes = np.array(
        [geometry.draw_crop((side, side), random, area=area, ratio=ratio) for _ in range(20_000)]
    )
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    assert boxes.min() >= 0 and boxes.max() <= side
    fractions = width * height / side**2
    aspects = np.log(width / height)
    positions = np.stack([left / (side - width), top / (side - height)])
    for values, (low, high) in (
        (fractions, area),
        (aspects, np.log(ratio)),
        (positions[0], (0, 1)),
        (positions[1], (0, 1)),
    ):
        # The moments of a uniform distribution, within four standard errors.
        spread = (high - low) / math.sqrt(12)
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * spread / math.sqrt(20_000))
        assert values.std() == pytest.approx(spread, rel=0.02)
        assert values.min() > low - 0.005 and values.max() < high + 0.005
    assert abs(np.corrcoef([fractions, aspects, *positions]) - np.eye(4)).max() < 0.03


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (3.0, 4.0), (0.2, 0.3)])
@pytest.mark.parametrize("image_size", [(1, 1), (1, 3000), (3000, 1), (2, 2)])
def test_odd_sizes_have_boxes_within_them(image_size, ratio):
    random = np.random.default_rng(0)
    for _ in range(50):
        left, top, right, bottom = geometry.draw_crop(image_size, random, ratio=ratio)
        assert 0 <= left < right <= image_size[0] and 0 <= top < bottom <= image_size[1]


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
@pytest.mark.parametrize("image_size", [(1, 1), (1, 900), (900, 1), (3, 9), (40, 20)])
def test_odd_sizes_come_out_at_the_size(image_size, crop):
    image = np.full((*image_size[::-1], 3), 9, np.uint8)
    transform = TrainTransform(crop, (8, 6), pad=0, rand_augment=RandAugment(), fill=(9, 9, 9))
    out = transform(image, np.random.default_rng(0))
    assert out.shape == (8, 6, 3) and out.dtype == np.uint8
    for resize in (None, 9):
        assert (make_eval_transform((8, 6), resize=resize)(image) == 9).all()


@pytest.mark.parametrize("size", [(100, 250), (300, 200), (64, 64), (40, 48)])
@pytest.mark.parametrize("resize", [None, 64, 80, "squash"])
def test_where_the_evaluation_crops(size, resize):
    height, width = size
    # The pixels tell where they are: red from left to right, green from top to bottom.
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width).round()
    image[..., 1] = np.linspace(0, 255, height).round()[:, None]
    cut = make_eval_transform((64, 64), resize=resize)(image) / 255
    left, top, right, bottom = geometry.evaluation_crop(size, (64, 64), resize)
    assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    half = (right - left) / 128, (bottom - top) / 128  # a pixel is half a pixel from the edge
    edges = [cut[32, 0, 0] - half[0], cut[0, 32, 1] - half[1]]
    edges += [cut[32, -1, 0] + half[0], cut[-1, 32, 1] + half[1]]
    assert edges == pytest.approx([left, top, right, bottom], abs=0.015)


def test_a_crop_beyond_the_image():
    assert geometry.evaluation_crop((32, 32), (64, 64), 32) == (-0.5, -0.5, 1.5, 1.5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_whole_images_are_resized_as_pillow_does(golden, interpolation):
    pixels = _photograph(golden)
    assert pixels.shape[0] != pixels.shape[1]
    resampling = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(pixels).resize((48, 64), resampling))
    transform = make_eval_transform((64, 48), resize="squash", interpolation=interpolation)
    np.testing.assert_array_equal(transform(pixels), expected)
    # torchvision's Resize((64, 48)), and then nothing random.
    train = TrainTransform("none", (64, 48), squash=True, interpolation=interpolation, flip=False)
    np.testing.assert_array_equal(train(pixels, np.random.default_rng(0)), expected)


def test_pad_crops():
    image = (np.arange(60 * 80 * 3) % 255).astype(np.uint8).reshape(60, 80, 3)
    exact = geometry.shifted_crop(image, (60, 80), (0, 0))
    np.testing.assert_array_equal(exact, image)
    shifted = geometry.shifted_crop(image, (60, 80), (-3, 2))
    np.testing.assert_array_equal(shifted[:-2, 3:], image[2:, :-3])
    assert not shifted[-2:].any() and not shifted[:, :3].any()
    random = np.random.default_rng(0)
    offsets = [geometry.draw_offset(3, random) for _ in range(2_000)]
    assert set(offsets) == {(x, y) for x in range(-3, 4) for y in range(-3, 4)}


def test_color_jitter_is_bit_equal_to_torchvision(golden):
    with np.load(golden / "torchvision.npz") as arrays:
        keys = [key for key in arrays if key.startswith("jitter/")]
        assert len(keys) == 4
        for key in keys:
            _, name, text = key.split("/")
            pairs = [pair.split("=") for pair in text.split(",")]
            adjustments = tuple((kind, float(factor)) for kind, factor in pairs)
            out = color_jitter(Image.fromarray(arrays[f"small/{name}"]), adjustments)
            np.testing.assert_array_equal(np.asarray(out), arrays[key], err_msg=key)


def test_the_distribution_of_color_jitter():
    random = np.random.default_rng(0)
    drawn = [draw_color_jitter(0.4, random) for _ in range(6_000)]
    orders = [tuple(name for name, _ in adjustments) for adjustments in drawn]
    counts = {names: orders.count(names) for names in set(orders)}
    assert len(counts) == 6 and all(880 < count < 1120 for count in counts.values())
    for name in ("brightness", "contrast", "saturation"):
        factors = np.array([dict(adjustments)[name] for adjustments in drawn])
        assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4
        assert factors.mean() == pytest.approx(1.0, abs=0.012)
    strong = [factor for _ in range(99) for _, factor in draw_color_jitter(3.0, random)]
    assert 0 <= min(strong) < max(strong) <= 4


def test_flips_half_the_time():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    transform = TrainTransform("none", (4, 4))
    flipped = [transform(image, image_random(0, 0, i))[0, 0, 0] != 0 for i in range(400)]
    assert 150 < sum(flipped) < 250
    transform = TrainTransform("none", (4, 4), flip=False)
    assert all(transform(image, image_random(0, 0, i))[0, 0, 0] == 0 for i in range(40))


def test_color_jitter_follows_the_flip(golden):
    image = _photograph(golden)
    transform = TrainTransform("pad", (48, 48), color_jitter=0.4)
    for i in range(6):
        choices = transform.draw(image.shape[1::-1], image_random(0, 0, i))
        assert len(choices.adjustments) == 3
        plain = dataclasses.replace(choices, adjustments=())
        expected = color_jitter(Image.fromarray(transform.apply(image, plain)), choices.adjustments)
        np.testing.assert_array_equal(transform.apply(image, choices), np.asarray(expected))


def test_random_interpolation_takes_either_evenly(golden):
    image = _photograph(golden)
    random = np.random.default_rng(0)
    transform = TrainTransform("random_resized", (24, 24), interpolation="random")
    drawn = [transform.draw(image.shape[1::-1], random).interpolation for _ in range(1_000)]
    assert set(drawn) == {"bilinear", "bicubic"} and 440 < drawn.count("bicubic") < 560
    choices = [transform.draw(image.shape[1::-1], np.random.default_rng(i)) for i in range(9)]
    for fixed in ("bilinear", "bicubic"):
        same = TrainTransform("random_resized", (24, 24), interpolation=fixed, flip=False)
        for choice in choices:
            if choice.interpolation == fixed and not choice.flip:
                expected = geometry.resized_crop(image, choice.box, (24, 24), fixed)
                np.testing.assert_array_equal(same.apply(image, choice), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("side", [60, 200], ids=["mild", "halved"])
def test_approximate_decoding_is_nearly_the_same(golden, interpolation, flip, side):
    data = (pathlib.Path(golden) / "images" / "flower_portrait.jpg").read_bytes()
    exact = TrainTransform("random_resized", (80, 90), interpolation=interpolation, flip=flip)
    choices = dataclasses.replace(
        exact.draw((375, 500), np.random.default_rng(0)), box=(90, 120, 90 + side, 120 + side)
    )
    choices = dataclasses.replace(choices, flip=flip)
    approximate = dataclasses.replace(exact, approximate=True).apply(decode(data), choices)
    pixels = exact.apply(decode(data), choices)
    assert approximate.dtype == np.uint8 and approximate.shape == pixels.shape == (80, 90, 3)
    assert 0 < np.abs(approximate - pixels.astype(int)).mean() < 2.5


def test_approximate_decoding_takes_every_augmentation(golden):
    data = (pathlib.Path(golden) / "images" / "flower_portrait.jpg").read_bytes()
    exact = TrainTransform("random_resized", (64, 64), rand_augment=RandAugment(num_ops=2))
    approximate = dataclasses.replace(exact, approximate=True)
    # An inversion or a rotation that one of them missed would be 50 levels off.
    for seed in range(12):
        actual, expected = (
            decode_and_transform(data, transform, np.random.default_rng(seed)).astype(int)
            for transform in (approximate, exact)
        )
        assert np.abs(actual - expected).mean() < 12


@pytest.mark.parametrize(
    "options",
    [dict(color_jitter=0.4), dict(rand_augment=RandAugment(magnitude=6.0, num_ops=3))],
)
def test_the_same_generator_gives_the_same_image(golden, options):
    image = _photograph(golden)
    transform = TrainTransform("random_resized", (32, 32), interpolation="random", **options)
    first = [transform(image, image_random(1, 2, i)) for i in range(8)]
    again = [transform(image, image_random(1, 2, i)) for i in reversed(range(8))]
    np.testing.assert_array_equal(first, again[::-1])
    assert len({out.tobytes() for out in first}) == 8
    other_epoch = transform(image, image_random(1, 3, 0))
    assert (other_epoch != first[0]).any()


def test_the_stages_stand_in_the_originals_order(golden):
    """Crop, flip, RandAugment: a shear before the flip would lean the other way."""
    image = _photograph(golden)
    transform = TrainTransform(
        "random_resized",
        (48, 48),
        interpolation="bicubic",
        rand_augment=RandAugment(probability=1.0),
        fill=(124, 116, 104),
    )
    for i in range(30):
        choices = transform.draw(image.shape[1::-1], image_random(0, 0, i))
        if choices.flip and any(op.name.startswith("Shear") for op in choices.operations):
            break
    else:
        pytest.fail("no shear of a flipped image was drawn")
    cropped = geometry.resized_crop(image, choices.box, (48, 48), "bicubic")
    flipped = Image.fromarray(geometry.flip(cropped))
    expected = rand_augment(flipped, choices.operations, transform.fill)
    np.testing.assert_array_equal(transform.apply(image, choices), np.asarray(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(crop="centre"), "crop must be random_resized, pad or none, got 'centre'"),
        (dict(interpolation="nearest"), "one of bilinear, bicubic, random, got 'nearest'"),
        (dict(pad=-1), "pad must be 0 pixels or more, got -1"),
        (dict(area=(0.0, 1.0)), r"area must be \(lowest, highest\) .* got \(0.0, 1.0\)"),
        (dict(area=(0.5, 1.5)), "area must end at 1 at most, .* got 1.5"),
        (dict(ratio=(4 / 3, 3 / 4)), "ratio must be"),
        (dict(ratio=(1.0,)), "ratio must be"),
        (dict(color_jitter=-0.1), "color_jitter must be 0 or more, got -0.1"),
        (dict(color_jitter=0.4, rand_augment=RandAugment()), "rand_augment replaces color_jitter"),
    ],
)
def test_bad_training_transforms(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**{"crop": "random_resized", "size": (4, 4), **arguments})


def test_bad_evaluation_transforms():
    with pytest.raises(ValueError, match=r"one of nearest, .*, hamming, got 'random'"):
        make_eval_transform((4, 4), resize=None, interpolation="random")
    with pytest.raises(ValueError, match="eval_resize must be at least 1 pixel, got 0"):
        make_eval_transform((4, 4), resize=0)


def _small_config():
    config = default_config()
    config.model.name = "resnet18"
    config.model.image_size = 32
    return config


def test_a_config_chooses_the_augmentation():
    config = _small_config()
    assert build(config).inputs.train_transform == TrainTransform(
        "random_resized", (32, 32), fill=FILL
    )
    config.data.interpolation = "random"
    config.data.eval_interpolation = "bicubic"
    config.data.ratio = (0.67, 1.5)
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.rand_augment.num_ops = 3
    config.data.rand_augment.magnitude = 6
    config.data.rand_augment.magnitude_std = 1.0
    assert build(config).inputs.train_transform == TrainTransform(
        "random_resized",
        (32, 32),
        ratio=(0.67, 1.5),
        interpolation="random",
        rand_augment=RandAugment(num_ops=3, magnitude=6.0, magnitude_std=1.0),
        fill=(128, 128, 128),
    )


FILL = (124, 116, 104)  # ImageNet's mean, of 255


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("interpolation", "random", "needs data.eval_interpolation"),
        ("rand_augment.magnitude", 11.0, "magnitude must be .* at most 10, got 11"),
        (
            "on_corrupt_image",
            "ignore",
            "on_corrupt_image must be one of replace, stop, got 'ignore'",
        ),
    ],
)
def test_bad_config_values(key, value, message):
    config = _small_config()
    config.data.rand_augment.num_ops = 2
    config.update_from_flattened_dict({f"data.{key}": value})
    with pytest.raises(ValueError, match=message):
        build(config)
