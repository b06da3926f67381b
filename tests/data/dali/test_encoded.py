"""What the host hands to DALI, put together by the host's own functions: the host's images."""

import io

import numpy as np
import pytest
from PIL import Image

from noah_jax.data import geometry
from noah_jax.data.batches import train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.dali.encoded import join, load
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.randaugment import RandAugment
from noah_jax.data.resize import resize
from noah_jax.data.sampler import Sampler
from noah_jax.data.transforms import TrainTransform
from tests.data.dali.images import BATCH, CORRUPT, Source

SIZE = (24, 32)
STEPS = 3
OPTIONS = [
    {"crop": "random_resized", "interpolation": "random"},
    {"crop": "random_resized", "color_jitter": 0.4},
    {"crop": "random_resized", "rand_augment": RandAugment(num_ops=2), "flip": False},
    {"crop": "pad", "pad": 9},
    {"crop": "none", "interpolation": "bicubic"},
    {"crop": "none", "squash": True},
]


def _as_dali_would(batch) -> np.ndarray:
    """Decodes, cuts, resizes, crops and flips as the columns say."""
    made = []
    for i, data in enumerate(batch.images()):
        row = {name: column[i] for name, column in batch.columns.items()}
        left, top = row["corner"]
        width, height = row["extent"]
        pixels = np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
        assert width <= pixels.shape[1] - left and height <= pixels.shape[0] - top
        pixels = pixels[top : top + height, left : left + width]
        whole = tuple(int(side) for side in row["resized"])
        pixels = resize(pixels, whole, "bicubic" if row["bicubic"] else "bilinear")
        padded = np.pad(pixels, ((50, 50), (50, 50), (0, 0)))
        y, x = row["window"] + 50
        pixels = padded[y : y + SIZE[0], x : x + SIZE[1]]
        made.append(pixels[:, ::-1] if row["flip"] else pixels)
    return np.stack(made)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options)))
def test_the_host_could_make_its_own_images_of_it(options):
    source = Source(multi_label=options["crop"] == "pad")
    transform = TrainTransform(size=SIZE, on_device=True, **options)
    sampler = Sampler(3, len(source), BATCH)
    expected = train_batches(
        DecodedSource(source),
        transform,
        sampler,
        start_step=0,
        total_steps=STEPS,
        num_threads=1,
        put=lambda batch: batch,
        corrupt_images=CorruptImages("replace", lambda text: None),
    )
    names = set()
    for step, host in enumerate(expected):
        batch, errors = load(DecodedSource(source), transform, sampler, 0, step, range(BATCH))
        names |= {error.name for error in errors}
        for key in ("label", "draws"):
            assert (key in batch.columns) == (key in host)
            if key in host:
                np.testing.assert_array_equal(batch.columns[key], host[key])
        np.testing.assert_array_equal(_as_dali_would(batch), host["image"])
    assert names == {f"image {kind}" for kind in CORRUPT}


def test_only_whole_plain_jpeg_files_are_left_to_dali():
    source = Source()
    sampler = Sampler(0, len(source), len(source))
    for refused in ((), ("grey", "tiny")):
        batch, _ = load(
            DecodedSource(source),
            TrainTransform("none", SIZE),
            sampler,
            0,
            0,
            range(len(source)),
            {list(source.kinds).index(kind) for kind in refused},
        )
        kinds = np.array(list(source.kinds))[batch.columns["index"]]
        images = zip(kinds, batch.images(), strict=True)
        left = {kind for kind, image in images if image[:2].tobytes() != b"P6"}
        assert left == {"plain", "portrait", "progressive", "grey", "tiny"} - set(refused)


def test_rows_stay_together():
    source, transform = DecodedSource(Source()), TrainTransform("random_resized", SIZE)
    sampler = Sampler(1, len(source), BATCH)
    whole, _ = load(source, transform, sampler, 0, 2, range(BATCH))
    # Chunks of threads, and rows of hosts.
    joined = join([load(source, transform, sampler, 4 * i, 2, range(4))[0] for i in range(2)])
    single, _ = load(source, transform, sampler, 0, 2, (5,))
    for batch in (joined, join(whole.split(4)), joined.with_row(5, single)):
        for one, other in zip(batch.images(), whole.images(), strict=True):
            np.testing.assert_array_equal(one, other)
        for name, column in whole.columns.items():
            np.testing.assert_array_equal(batch.columns[name], column)
    assert joined.with_row(0, single).images()[0].tobytes() == whole.images()[5].tobytes()


def test_a_crops_corner():
    assert geometry.crop_corner((10, 20), (4, 4)) == (3, 8)
    assert geometry.crop_corner((10, 20, 3), (4, 4), (-9, 2)) == (5, -1)
