"""Decoding of ordinary, unusual and corrupt images; batches without the corrupt ones."""

import io
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from noah_jax.data.batches import eval_batches, train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource, decode, decode_and_transform
from noah_jax.data.jpeg import decode_jpeg, read_header
from noah_jax.data.sampler import Sampler, permutation
from noah_jax.data.source import SAMPLE
from noah_jax.data.sources import open_sources
from noah_jax.data.transforms import TrainTransform, make_eval_transform
from noah_jax.errors import CorruptImageError
from noah_jax.train import train
from noah_jax.train.setup import build


def _encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _photograph(golden, name: str) -> bytes:
    return (pathlib.Path(golden) / "images" / name).read_bytes()


def test_tfds_is_imported_only_for_its_datasets(class_folders):
    code = (
        "import sys; import noah_jax.data.batches, noah_jax.data.image_files, noah_jax.data.setup;"
        "from noah_jax.data.sources import open_sources; open_sources(sys.argv[1]);"
        "sys.exit('tensorflow_datasets' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, class_folders], check=True)


def test_decoding_is_bit_equal_to_the_original(golden):
    with np.load(golden / "preprocess.npz") as arrays:
        decoded = decode(_photograph(golden, "china.jpg"))
        np.testing.assert_array_equal(decoded[:160, :160], arrays["decode/china.jpg"])


def test_the_exif_rotation_is_ignored(golden):
    data = _photograph(golden, "rocket_exif.jpg")
    with Image.open(io.BytesIO(data)) as raw:
        assert raw.getexif()[0x0112] != 1  # the file asks for a rotation
        assert decode(data).shape[1::-1] == raw.size


ROW = np.array([[0, 100, 255]], np.uint8)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(ROW), [[0] * 3, [100] * 3, [255] * 3]),
        (Image.fromarray(ROW).convert("1", dither=0), [[0] * 3, [0] * 3, [255] * 3]),
        # Transparency is dropped, not laid over some colour.
        (Image.fromarray(np.stack([ROW, 0 * ROW], -1)), [[0] * 3, [100] * 3, [255] * 3]),
        (Image.new("RGBA", (3, 1), (9, 8, 7, 0)), [[9, 8, 7]] * 3),
        (Image.new("RGB", (3, 1), (9, 8, 7)).quantize(4), [[9, 8, 7]] * 3),
    ],
    ids=["gray", "bits", "gray_alpha", "rgba", "palette"],
)
def test_other_modes_become_rgb(image, expected):
    decoded = decode(_encoded(image))
    np.testing.assert_array_equal(decoded[0], expected)


def test_sixteen_bits_become_what_pillow_makes_of_them():
    deep = Image.fromarray(np.array([[0, 255, 300, 65535]], np.uint16))
    with Image.open(io.BytesIO(_encoded(deep))) as raw:
        assert raw.mode == "I;16"
        expected = np.asarray(raw.convert("RGB"))
    np.testing.assert_array_equal(decode(_encoded(deep)), expected)


def _jpeg(golden, **options) -> bytes:
    with Image.open(golden / "images" / "flower_portrait.jpg") as photograph:
        image = photograph.resize((93, 131)).convert(options.pop("mode", "RGB"))
    return _encoded(image, "JPEG", **options)


JPEGS = {
    "4:4:4": dict(subsampling=0),
    "4:2:2": dict(subsampling=1),
    "4:2:0": dict(subsampling=2),
    "progressive": dict(progressive=True, quality=40),
    "coarse": dict(quality=5),
    "optimised": dict(optimize=True, quality=95),
    "restarts": dict(restart_marker_blocks=3),
    "gray": dict(mode="L"),
    "cmyk": dict(mode="CMYK"),
    "rgb": dict(keep_rgb=True),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_are_decoded_as_pillow_does(golden, kind):
    data = _jpeg(golden, **JPEGS[kind])
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)
    if (header := read_header(data)) is not None:
        approximate = decode_jpeg(data, header, approximate=True)
        assert approximate.dtype == np.uint8 and approximate.shape == expected.shape
        assert np.abs(approximate - expected.astype(int)).mean() < 3


@pytest.mark.parametrize("kind", JPEGS)
def test_rows_below_the_crop_are_not_needed(golden, kind):
    data = _jpeg(golden, **JPEGS[kind])
    header = read_header(data)
    if kind in ("cmyk", "rgb"):
        assert header is None
        return
    assert header[:2] == (93, 131) and (header.height_at is None) == (kind == "progressive")
    whole = decode(data)
    for rows in range(1, 132):
        top = decode_jpeg(data, header, rows=rows)
        assert len(top) == (131 if header.height_at is None else min(rows + 8, 131))
        np.testing.assert_array_equal(top[:rows], whole[:rows])


def test_crops_are_those_of_whole_images(golden):
    transform = TrainTransform("random_resized", (20, 24), interpolation="random")
    for data in (_jpeg(golden), _jpeg(golden, mode="CMYK"), _photograph(golden, "china.jpg")):
        for seed in range(9):
            np.testing.assert_array_equal(
                decode_and_transform(data, transform, np.random.default_rng(seed)),
                transform(decode(data), np.random.default_rng(seed)),
            )


def test_only_pillow_decides_what_is_corrupt(golden):
    data = _jpeg(golden)
    # Bytes between a segment and the next marker: libjpeg warns, and Pillow goes on reading.
    start = data.index(b"\xff\xda")
    odd = data[:start] + b"\x00\x00\x00" + data[start:] + b"more"
    expected = np.asarray(Image.open(io.BytesIO(odd)).convert("RGB"))
    np.testing.assert_array_equal(decode(odd), expected)
    # A truncated file is refused even if only rows below the crop are missing.
    top = TrainTransform("random_resized", (8, 8), area=(0.01, 0.02))
    for length in (len(data) // 2, len(data) - 40, 30):
        with pytest.raises(CorruptImageError, match="cannot be decoded"):
            decode(data[:length])
        for seed in range(5):
            with pytest.raises(CorruptImageError, match="cannot be decoded"):
                decode_and_transform(data[:length], top, np.random.default_rng(seed))


def test_the_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(CorruptImageError("a.jpg", "it is empty")))
    assert (error.name, str(error)) == ("a.jpg", "a.jpg cannot be decoded: it is empty")


PIXELS = np.random.RandomState(0).randint(0, 256, (32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"not an image at all", "its 19 bytes are no image that Pillow can read"),
        (_encoded(Image.fromarray(PIXELS), "JPEG")[:700], "truncated"),
        (_encoded(Image.fromarray(PIXELS))[:700], "truncated"),
        (_encoded(Image.fromarray(PIXELS), "GIF")[:700], "."),
        (_encoded(Image.fromarray(PIXELS), "WEBP")[:200], "."),
        (_encoded(Image.fromarray(PIXELS)).replace(b"IDAT", b"IDOT", 1), "."),
    ],
    ids=["empty", "text", "jpeg", "png", "gif", "webp", "png_chunk"],
)
def test_corrupt_images_raise_one_named_error(data, reason):
    with pytest.raises(CorruptImageError, match=rf"^/a/b\.jpg cannot be decoded: .*{reason}") as e:
        decode(data, "/a/b.jpg")
    assert "\n" not in str(e.value)
    assert e.value.name == "/a/b.jpg"


def test_a_lack_of_memory_is_not_a_corrupt_image(monkeypatch):
    def fail(*unused):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        decode(_encoded(Image.fromarray(PIXELS)))


def test_sources_say_which_image_it_is(class_folders):
    train, val = open_sources(class_folders)
    assert val.describe(7) == f"{class_folders}/val/bee/00.png"
    assert train.describe(0) == f"{class_folders}/train/ant/00.png"
    train, _ = open_sources(SAMPLE)
    assert train.describe(5) == f"image 5 of {SAMPLE}/1.0.0:train"


def test_every_corrupt_image_is_named_once():
    lines = []
    corrupt_images = CorruptImages("replace", lines.append)
    for name in ("a", "b", "a"):
        corrupt_images.add(CorruptImageError(name, "truncated"))
    assert len(corrupt_images) == 2
    assert lines == [
        "corrupt image 1: a cannot be decoded: truncated",
        "corrupt image 2: b cannot be decoded: truncated",
    ]
    with pytest.raises(CorruptImageError, match="a cannot be decoded: truncated"):
        CorruptImages("stop", lines.append).add(CorruptImageError("a", "truncated"))
    with pytest.raises(ValueError, match="one of replace, stop, got 'skip'"):
        CorruptImages("skip", lines.append)


class _Encoded:
    """A source whose image i is filled with i and has the class index i; some are corrupt."""

    multi_label = False

    def __init__(self, length: int, corrupt: tuple[int, ...]):
        self._length, self._corrupt = length, corrupt
        self.class_names = [str(i) for i in range(length)]

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if index in self._corrupt:
            return b"broken", index
        return _encoded(Image.new("RGB", (4, 4), (index,) * 3)), index

    def describe(self, index):
        return f"image {index}"


def _train(source: _Encoded, corrupt_images: CorruptImages, **kwargs) -> list:
    arguments = dict(start_step=0, total_steps=9, num_threads=2)
    return list(
        train_batches(
            DecodedSource(source),
            TrainTransform("pad", (4, 4), pad=1),
            Sampler(seed=3, length=len(source), batch_size=8),
            put=lambda x: x,
            corrupt_images=corrupt_images,
            **arguments | kwargs,
        )
    )


def _replacing() -> CorruptImages:
    return CorruptImages("replace", lambda text: None)


def test_the_next_image_replaces_a_corrupt_one():
    corrupt_images = _replacing()
    batches = _train(_Encoded(24, (4, 5, 23)), corrupt_images)
    labels = np.concatenate([batch["label"] for batch in batches])
    sampled = np.concatenate([permutation(3, epoch, 24) for epoch in range(3)])
    replacements = {4: 6, 5: 6, 23: 0}
    assert labels.tolist() == [replacements.get(index, index) for index in sampled]
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images.max((1, 2, 3)), labels)
    assert len(corrupt_images) == 3


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_replacements_depend_on_neither_start_nor_hosts(hosts):
    source = _Encoded(21, (0, 7, 20))
    whole = _train(source, _replacing())
    per_host = [
        _train(source, _replacing(), start_step=4, process_index=h, process_count=hosts)
        for h in range(hosts)
    ]
    for step, batch in enumerate(whole[4:]):
        for key, values in batch.items():
            joined = np.concatenate([batches[step][key] for batches in per_host])
            np.testing.assert_array_equal(joined, values)


def test_evaluation_leaves_corrupt_images_out():
    corrupt_images = _replacing()
    seen = []
    for batch in eval_batches(
        DecodedSource(_Encoded(21, (0, 9))),
        make_eval_transform((4, 4), resize=None),
        batch_size=8,
        num_threads=2,
        put=lambda x: x,
        corrupt_images=corrupt_images,
    ):
        assert batch["image"].shape == (8, 4, 4, 3)
        seen += batch["label"][batch["mask"]].tolist()
    assert seen == [i for i in range(21) if i not in (0, 9)]
    assert len(corrupt_images) == 2


def test_the_policy_stop_raises_the_error():
    stop = CorruptImages("stop", print)
    with pytest.raises(CorruptImageError, match="image 5 cannot be decoded"):
        _train(_Encoded(24, (5,)), stop)
    with pytest.raises(CorruptImageError, match="image 9 cannot be decoded"):
        list(
            eval_batches(
                DecodedSource(_Encoded(12, (9,))),
                make_eval_transform((4, 4), resize=None),
                batch_size=4,
                num_threads=1,
                put=lambda x: x,
                corrupt_images=stop,
            )
        )


def test_a_dataset_without_images_is_an_error():
    with pytest.raises(ValueError, match="8 images in a row cannot be used; the last: image"):
        _train(_Encoded(8, tuple(range(8))), _replacing())
    with pytest.raises(ValueError, match="100 images in a row"):
        _train(_Encoded(300, tuple(range(300))), _replacing())


def test_a_run_survives_corrupt_files(tiny_config, tmp_path, capfd):
    root = pathlib.Path(tiny_config.dataset)
    for split in ("train", "val"):
        for path in sorted((root / split).glob("*/*.png")):
            target = tmp_path / "set" / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    truncated = [tmp_path / "set" / name for name in ("train/bee/03.png", "val/ant/00.png")]
    for path in truncated:
        path.write_bytes(path.read_bytes()[:60])
    tiny_config.dataset = str(tmp_path / "set")
    tiny_config.data.crop = "random_resized"
    tiny_config.data.rand_augment.num_ops = 2
    results = train(tiny_config, str(tmp_path / "run"))
    assert results["step"] == 12 and results["examples"] == 20
    err = capfd.readouterr().err
    assert "warning: 2 corrupt image(s), named above: replaced by the next one" in err
    for path in truncated:
        assert err.count(f"{path} cannot be decoded") == 1
    tiny_config.data.on_corrupt_image = "stop"
    with pytest.raises(CorruptImageError, match=r"bee/03\.png"):
        list(build(tiny_config).inputs.train_batches(0))
