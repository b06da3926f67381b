"""The compiled resize against Pillow's."""

import numpy as np
import pytest
from PIL import Image

from noah_jax.data import resize as module
from noah_jax.data.resize import resize

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def _by_pillow(pixels, size, interpolation, box, flip):
    left, top, right, bottom = box
    image = Image.fromarray(pixels[top:bottom, left:right])
    image = image.resize(size[::-1], _RESAMPLING[interpolation])
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


@pytest.fixture(scope="module")
def noise():
    # The hardest case: neighbours differ most, and the bicubic filter overshoots.
    return np.random.default_rng(0).choice([0, 1, 128, 254, 255], (300, 400, 3)).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (1, 1), (7, 300), (300, 7), None])
def test_bit_equal_to_pillow(noise, interpolation, size):
    random = np.random.default_rng(1)
    for i in range(60):
        width, height = random.integers(1, 400), random.integers(1, 300)
        left, top = random.integers(0, 401 - width), random.integers(0, 301 - height)
        box = tuple(int(edge) for edge in (left, top, left + width, top + height))
        to = size or tuple(int(side) for side in random.integers(1, 450, 2))
        expected = _by_pillow(noise, to, interpolation, box, flip=i % 2 == 1)
        actual = resize(noise, to, interpolation, box=box, flip=i % 2 == 1)
        np.testing.assert_array_equal(actual, expected, err_msg=f"{box} to {to}")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_either_pass_comes_first_where_pillow_has_it_first(noise, interpolation):
    # The image loses 100 rows; the vertical pass comes first if it loses fewer than 50 columns.
    for width in range(40, 160):
        box = (0, 0, width, 200)
        expected = _by_pillow(noise, (100, 100), interpolation, box, flip=False)
        actual = resize(noise, (100, 100), interpolation, box=box)
        np.testing.assert_array_equal(actual, expected, err_msg=f"{width}")


def test_strided_pixels_and_no_box(noise):
    for pixels in (noise[::2, ::-1], noise[:, 50:60], noise.transpose(1, 0, 2)):
        expected = _by_pillow(pixels, (64, 48), "bicubic", (0, 0, *pixels.shape[1::-1]), flip=False)
        np.testing.assert_array_equal(resize(pixels, (64, 48), "bicubic"), expected)


def test_compiles_without_a_folder_for_the_cache(monkeypatch):
    def njit(*, nogil, cache=False):
        if cache:
            raise RuntimeError("no locator available")
        return lambda function: ("compiled", function, nogil)

    monkeypatch.setattr(module.numba, "njit", njit)
    assert module.compiled(len) == ("compiled", len, True)


@pytest.mark.parametrize("width", [1, 10, 11, 21, 224])
def test_into_a_row_of_a_batch(noise, width):
    # Narrow images go byte by byte; the others' last bytes are computed twice.
    batch = np.full((3, 9, width, 3), 77, np.uint8)
    out = resize(noise, (9, width), "bicubic", box=(0, 0, 30, 40), out=batch[1])
    assert out.base is batch
    expected = _by_pillow(noise, (9, width), "bicubic", (0, 0, 30, 40), flip=False)
    np.testing.assert_array_equal(batch[1], expected)
    assert (batch[[0, 2]] == 77).all()
