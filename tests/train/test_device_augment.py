"""Colour jitter and RandAugment in the step, against Pillow's operations on the host."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image

from noah_jax import distributed
from noah_jax.compilation import QUICK_COMPILE
from noah_jax.data import randaugment
from noah_jax.data.color import color_jitter, draw_color_jitter
from noah_jax.data.device_draws import CODES, encode_draws, rounded_factor
from noah_jax.data.randaugment import OPERATIONS, Operation, RandAugment, rand_augment
from noah_jax.data.sampler import image_random
from noah_jax.data.transforms import TrainTransform
from noah_jax.train.device_augment import augment, make_apply_draws
from noah_jax.train.device_serial import augment_serially

HEIGHT, WIDTH = 20, 26
FILL = (124, 116, 104)
MOVING = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
MAGNITUDES = (0.0, 3.3, 7.9, 10.0)


def _images():
    """A constant image, noise, and smooth ones of few and of many levels."""
    random = np.random.default_rng(0)
    images = [np.full((HEIGHT, WIDTH, 3), 7, np.uint8)]
    images.append(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    for low, high in ((1, 10), (0, 255), (90, 200), (2, 11), (37, 38), (100, 255)):
        small = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT)), np.float32)
        images.append((low + smooth * (high - low) / 255).round().astype(np.uint8))
    return np.stack(images)


IMAGES = _images()
FORMS = {"batched": augment, "serial": augment_serially}


def _quick(function):
    return jax.jit(function, compiler_options=QUICK_COMPILE)


@pytest.fixture(scope="module", params=FORMS)
def applied(request):
    """The form for GPUs and CPUs and the one for TPUs, without and with cubics."""
    form = functools.partial(FORMS[request.param], fill=FILL)
    return {
        bicubic: _quick(functools.partial(form, codes=codes, bicubic=bicubic))
        for bicubic, codes in ((False, CODES), (True, ("nothing", "affine")))
    }


@pytest.fixture
def _rounded_factors(monkeypatch):
    exact = randaugment.enhancement
    monkeypatch.setattr(randaugment, "enhancement", lambda op: rounded_factor(exact(op)))


@pytest.mark.usefixtures("_rounded_factors")
@pytest.mark.parametrize(
    ("name", "bicubic"), [*((name, False) for name in OPERATIONS), *((x, True) for x in MOVING)]
)
def test_each_operation(applied, name, bicubic):
    interpolation = "bicubic" if bicubic else "bilinear"
    for magnitude in MAGNITUDES:
        for negated in (False, True):
            operation = Operation(name, magnitude, negated, interpolation)
            draws = encode_draws((), (operation,), rows=2, size=(HEIGHT, WIDTH))
            # A shape of its own for each call would compile anew.
            got = np.asarray(applied[bicubic](IMAGES, np.stack([draws] * len(IMAGES))))
            expected = [rand_augment(Image.fromarray(x), (operation,), FILL) for x in IMAGES]
            difference = np.abs(got.astype(int) - np.stack([np.asarray(x) for x in expected]))
            # Moved pixels are cut to whole levels, which float32 coordinates can miss by one.
            assert difference.max() <= (name in MOVING), (magnitude, negated)
            assert difference.mean() < 0.01


@pytest.mark.usefixtures("_rounded_factors")
def test_every_image_has_operations_of_its_own(applied):
    random = np.random.default_rng(3)
    drawn = [RandAugment(num_ops=2).draw(random, "bilinear") for _ in IMAGES]
    assert {len(operations) for operations in drawn} == {0, 1, 2}
    draws = [encode_draws((), x, rows=2, size=(HEIGHT, WIDTH)) for x in drawn]
    got = np.asarray(applied[False](IMAGES, np.stack(draws)))
    for pixels, image, operations in zip(got, IMAGES, drawn, strict=True):
        expected = np.asarray(rand_augment(Image.fromarray(image), operations, FILL))
        difference = np.abs(pixels.astype(int) - expected)
        assert (difference > 1).mean() < 0.01, operations


def test_what_is_drawn_is_applied_in_order():
    """A jitter, and RandAugment's draws, of the same generators on the host and on the device."""
    random = np.random.default_rng(5)
    drawn = [draw_color_jitter(0.4, random) for _ in IMAGES]
    drawn = [tuple((name, rounded_factor(f)) for name, f in adjustments) for adjustments in drawn]
    rows = np.stack([encode_draws(x, (), rows=3, size=(HEIGHT, WIDTH)) for x in drawn])
    transform = TrainTransform("none", (HEIGHT, WIDTH), color_jitter=0.4, on_device=True)
    got = _quick(make_apply_draws(transform, None))(IMAGES, rows)
    expected = [color_jitter(Image.fromarray(x), a) for x, a in zip(IMAGES, drawn, strict=True)]
    np.testing.assert_array_equal(got, np.stack([np.asarray(x) for x in expected]))


def test_a_transform_leaves_its_draws_to_the_device():
    host = TrainTransform(
        "random_resized", (HEIGHT, WIDTH), rand_augment=RandAugment(num_ops=2), fill=FILL
    )
    device = dataclasses.replace(host, on_device=True)
    assert host.draw_shape is None
    pixels, draws, expected = [], [], []
    for index in range(16):
        image = IMAGES[index % len(IMAGES)]
        left = device.transform(image, image_random(0, 0, index))
        pixels.append(left.pixels)
        draws.append(left.draws)
        expected.append(host(image, image_random(0, 0, index)))
    draws = np.stack(draws)
    assert draws.shape == (16, *device.draw_shape)
    assert (draws[..., 0] == CODES.index("nothing")).any()  # some draws are not applied
    mesh = distributed.make_mesh()
    got = _quick(make_apply_draws(device, mesh))(np.stack(pixels), draws)
    difference = np.abs(np.asarray(got).astype(int) - np.stack(expected))
    # An enhancement's factor has 16 bits here and all there; few pixels come out a level lower,
    # which a later table of levels (equalize) can enlarge.
    assert (difference > 1).mean() < 0.01
    assert make_apply_draws(host, mesh) is None
