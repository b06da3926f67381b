"""Decoding only the part of a JPEG file that a crop needs."""

import io

import numpy as np
import pytest
from PIL import Image

from noah_jax.data import decoding
from noah_jax.data.decoding import decode, decode_and_transform
from noah_jax.data.jpeg_regions import cut_region
from noah_jax.data.transforms import TrainTransform
from noah_jax.errors import CorruptImageError
from tests.helpers import GOLDEN

PHOTOGRAPH = Image.open(GOLDEN / "images" / "flower_portrait.jpg").convert("RGB")


def _encode(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, **options)
    return out.getvalue()


@pytest.mark.parametrize("size", [(203, 151), (160, 128), (97, 210)])
@pytest.mark.parametrize("sampling", ["4:2:0", "4:2:2", "4:4:4", "grey"])
def test_the_pixels_of_a_box_are_those_of_the_whole_file(size, sampling):
    image = PHOTOGRAPH.crop((40, 40, 40 + size[0], 40 + size[1]))
    options = {} if sampling == "grey" else {"subsampling": sampling}
    if sampling == "grey":
        image = image.convert("L")
    block = 16 if sampling in ("4:2:0", "4:2:2") else 8
    blocks = -(-size[0] // block)
    random = np.random.default_rng(0)
    for interval in {n for n in (1, 2, 5, blocks) if blocks % n == 0}:
        data = _encode(image, restart_marker_blocks=interval, **options)
        whole = decode(data)
        smaller = 0
        for _ in range(40):
            left, top = random.integers(0, size[0] - 2), random.integers(0, size[1] - 2)
            right = random.integers(left + 1, size[0] + 1)
            bottom = random.integers(top + 1, size[1] + 1)
            region = cut_region(data, (int(left), int(top), int(right), int(bottom)))
            if region is None:
                continue
            part = decode(region.data)
            x, y = left - region.left, top - region.top
            np.testing.assert_array_equal(
                part[y : bottom - region.top, x : right - region.left],
                whole[top:bottom, left:right],
            )
            smaller += part.size < whole.size and len(region.data) < len(data)
        assert smaller > 20


def test_training_crops_are_the_same_and_decode_less(monkeypatch):
    data = _encode(PHOTOGRAPH, restart_marker_blocks=1)
    transform = TrainTransform("random_resized", (48, 48), area=(0.05, 0.3))
    pixels = decode(data)
    decoded = []
    decode_jpeg = decoding.decode_jpeg

    def counting(*arguments, **options):
        decoded.append(decode_jpeg(*arguments, **options))
        return decoded[-1]

    monkeypatch.setattr(decoding, "decode_jpeg", counting)
    for seed in range(12):
        np.testing.assert_array_equal(
            decode_and_transform(data, transform, np.random.default_rng(seed)),
            transform(pixels, np.random.default_rng(seed)),
        )
    assert len(decoded) == 12
    assert np.mean([part.size for part in decoded]) < pixels.size / 2


def test_other_files_are_left_whole():
    box = (0, 0, 20, 20)
    markers = {"restart_marker_blocks": 1}
    assert cut_region(_encode(PHOTOGRAPH, **markers), box) is not None
    whole = (0, 0, *PHOTOGRAPH.size)
    assert cut_region(_encode(PHOTOGRAPH, **markers), whole) is None
    assert cut_region(_encode(PHOTOGRAPH), box) is None
    assert cut_region(_encode(PHOTOGRAPH, progressive=True, **markers), box) is None
    # 3 blocks do not divide a row, so rows begin between two markers.
    image = PHOTOGRAPH.crop((0, 0, 64, 64))
    assert cut_region(_encode(image, restart_marker_blocks=3), box) is None
    assert cut_region(b"", box) is None


def test_corrupt_files_are_as_corrupt_as_without_markers():
    data = _encode(PHOTOGRAPH, restart_marker_blocks=1)
    box = (100, 100, 200, 200)
    second = data.index(b"\xff\xd1")
    for corrupt in (
        data[: len(data) // 2],
        data[:second] + b"\xff\xd5" + data[second + 2 :],  # a marker out of turn
        data[:second] + b"\xff\xd9",
    ):
        cut_region(corrupt, box)  # whatever it finds, it does not fail
        assert cut_region(corrupt, (0, 300, *PHOTOGRAPH.size)) is None
    transform = TrainTransform("random_resized", (48, 48), area=(1.0, 1.0))
    with pytest.raises(CorruptImageError):
        decode_and_transform(data[: len(data) // 2], transform, np.random.default_rng(0))


def test_random_bytes_do_no_harm():
    data = _encode(PHOTOGRAPH.crop((0, 0, 96, 96)), restart_marker_blocks=1)
    random = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for at in random.integers(2, len(data), 3):
            changed[at] = random.integers(256)
        region = cut_region(bytes(changed), (30, 30, 60, 60))
        assert region is None or len(region.data) <= len(data)
