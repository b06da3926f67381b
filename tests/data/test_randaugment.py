"""RandAugment's operations against timm's, and the distribution of its draws."""

import math

import numpy as np
import pytest
from PIL import Image

from noah_jax.data.randaugment import OPERATIONS, Operation, RandAugment, mean_color, rand_augment

FILL = (124, 116, 104)
MAGNITUDES = (3, 6, 9, 10)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_bit_equal_to_timms(golden, name):
    magnitudes = MAGNITUDES[:-1] if name == "PosterizeIncreasing" else MAGNITUDES
    with np.load(golden / "randaugment.npz") as arrays:
        assert sum(key.startswith(f"{name}/") for key in arrays) == 2 * len(magnitudes)
        source = Image.fromarray(arrays["source"])
        for magnitude in magnitudes:
            for negated, sign in ((False, "pos"), (True, "neg")):
                operation = Operation(name, float(magnitude), negated, "bicubic")
                out = np.asarray(rand_augment(source, (operation,), FILL))
                key = f"{name}/{magnitude}/{sign}"
                np.testing.assert_array_equal(out, arrays[key], err_msg=key)


def test_the_vectors_hold_every_operation(golden):
    with np.load(golden / "randaugment.npz") as arrays:
        assert {key.split("/")[0] for key in arrays} == {"source", *OPERATIONS}


def test_posterizing_to_no_bits_is_black(golden):
    with np.load(golden / "randaugment.npz") as arrays:
        source = Image.fromarray(arrays["source"])
    black = rand_augment(source, (Operation("PosterizeIncreasing", 10.0, False, "bicubic"),), FILL)
    assert not np.asarray(black).any()


def test_operations_follow_one_another(golden):
    with np.load(golden / "randaugment.npz") as arrays:
        source = Image.fromarray(arrays["source"])
        invert, rotate = (Operation(name, 9.0, False, "bicubic") for name in ("Invert", "Rotate"))
        rotated = np.asarray(rand_augment(source, (invert, rotate), FILL))
        # The inversion comes first, so it does not invert the fill in the corners.
        assert tuple(rotated[0, 0]) == FILL
        inverted = np.asarray(rand_augment(source, (rotate, invert), FILL))
        np.testing.assert_array_equal(inverted, 255 - arrays["Rotate/9/pos"])
    assert rand_augment(source, (), FILL) is source


def test_interpolation_is_what_was_drawn(golden):
    with np.load(golden / "randaugment.npz") as arrays:
        source = Image.fromarray(arrays["source"])
        for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
            operation = Operation(name, 6.0, False, "bilinear")
            out = np.asarray(rand_augment(source, (operation,), FILL))
            difference = np.abs(out.astype(int) - arrays[f"{name}/6/pos"])
            assert 0 < difference.mean() < 10


def test_translations_are_relative_to_their_own_side():
    pixels = np.random.RandomState(0).randint(0, 256, (40, 20, 3), np.uint8)
    down, right = (Operation(f"Translate{axis}Rel", 10.0, True, "bilinear") for axis in "YX")
    moved = np.asarray(rand_augment(Image.fromarray(pixels), (down,), FILL))
    np.testing.assert_array_equal(moved[18:], pixels[:22])  # 0.45 of 40
    assert (moved[:18] == FILL).all()
    moved = np.asarray(rand_augment(Image.fromarray(pixels), (right,), FILL))
    np.testing.assert_array_equal(moved[:, 9:], pixels[:, :11])  # 0.45 of 20
    assert (moved[:, :9] == FILL).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_odd_sizes_keep_their_size(name, size):
    image = Image.new("RGB", size, (200, 30, 90))
    for magnitude in (0.0, 5.0, 10.0):
        out = rand_augment(image, (Operation(name, magnitude, True, "bilinear"),), FILL)
        assert out.size == size and out.mode == "RGB"


def _draw(count: int, interpolation: str = "bicubic", **settings) -> list[tuple[Operation, ...]]:
    random = np.random.default_rng(0)
    return [RandAugment(**settings).draw(random, interpolation) for _ in range(count)]


def test_how_many_and_which_operations_are_drawn():
    drawn = _draw(30_000, num_ops=2)
    counts = np.bincount([len(operations) for operations in drawn])
    np.testing.assert_allclose(counts / 30_000, [0.25, 0.5, 0.25], atol=0.012)
    names = [operation.name for operations in drawn for operation in operations]
    frequencies = np.array([names.count(name) for name in OPERATIONS]) / len(names)
    np.testing.assert_allclose(frequencies, 1 / 15, atol=0.006)
    pairs = [operations for operations in drawn if len(operations) == 2]
    same = np.mean([first.name == second.name for first, second in pairs])
    assert same == pytest.approx(1 / 15, abs=0.012)  # with replacement
    always = _draw(50, num_ops=3, probability=1.0)
    assert {len(operations) for operations in always} == {3}
    assert not any(_draw(50, probability=0.0))


@pytest.mark.parametrize(("magnitude", "std"), [(9.0, 0.5), (6.0, 1.0)])
def test_the_distribution_of_magnitudes_and_signs(magnitude, std):
    drawn = _draw(10_000, magnitude=magnitude, magnitude_std=std, probability=1.0)
    operations = [operation for operations in drawn for operation in operations]
    values = np.array([operation.magnitude for operation in operations])
    assert values.min() >= 0 and values.max() <= 10

    def below(bound: float) -> float:  # the normal distribution
        return 0.5 * math.erfc((magnitude - bound) / (std * math.sqrt(2)))

    for bound in magnitude + std * np.array([-2, -1, -0.3, 0, 0.6, 1.3]):
        assert (values < bound).mean() == pytest.approx(below(bound), abs=0.015)
    assert (values == 10).mean() == pytest.approx(1 - below(10), abs=0.005)  # clipped to it
    negated = np.array([operation.negated for operation in operations])
    assert negated.mean() == pytest.approx(0.5, abs=0.015)
    assert abs(np.corrcoef(negated, values)[0, 1]) < 0.03


def test_interpolation_of_operations():
    drawn = _draw(2_000, "random", probability=1.0)
    modes = [operation.interpolation for operations in drawn for operation in operations]
    assert set(modes) == {"bilinear", "bicubic"} and 1_850 < modes.count("bilinear") < 2_150
    assert any(a.interpolation != b.interpolation for a, b in drawn)  # for each anew
    fixed = _draw(50, "bicubic", probability=1.0)
    assert {operation.interpolation for both in fixed for operation in both} == {"bicubic"}


def test_draws_depend_on_the_generator_alone():
    settings = RandAugment()
    first, again = (settings.draw(np.random.default_rng(3), "random") for _ in range(2))
    assert first == again
    assert _draw(20) != [settings.draw(np.random.default_rng(1), "bicubic") for _ in range(20)]


def test_fill_is_the_mean_color():
    assert mean_color((0.485, 0.456, 0.406)) == FILL
    assert mean_color((0.0, 0.5, 1.0)) == (0, 128, 255)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(num_ops=0), "num_ops must be at least 1, got 0"),
        (dict(magnitude=10.5), "magnitude must be in 0..10, got 10.5"),
        (dict(magnitude=-1.0), "magnitude must be in 0..10, got -1.0"),
        (dict(magnitude_std=-0.5), "magnitude_std must not be negative, got -0.5"),
        (dict(probability=1.5), "probability must be in 0..1, got 1.5"),
        (dict(probability=math.nan), "probability must be in 0..1, got nan"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**settings)
