"""Sources, sampler, transforms and batches."""

import io
import pathlib
import resource

import numpy as np
import pytest
from PIL import Image

from noah_jax.data.batches import eval_batches, train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource, decode
from noah_jax.data.randaugment import RandAugment
from noah_jax.data.sampler import Sampler, image_random, permutation
from noah_jax.data.source import SAMPLE
from noah_jax.data.sources import open_sources
from noah_jax.data.transforms import TrainTransform, make_eval_transform


class _Numbers:
    """A decoded source whose image i is filled with i."""

    cached = False
    label_shape = ()

    def __init__(self, length: int):
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        return np.full((4, 4, 3), index, np.uint8), index % 7

    def start(self, index, transform, random):
        pixels, label = self[index]
        return lambda out: (transform.transform(pixels, random, out), label)


def _take(source, transform=None, batch_size=8, **kwargs):
    transform = transform or TrainTransform("none", (4, 4), flip=False)
    sampler = Sampler(seed=3, length=len(source), batch_size=batch_size)
    arguments = dict(start_step=0, total_steps=9, num_threads=2)
    arguments |= dict(put=lambda x: x, corrupt_images=CorruptImages("stop", print)) | kwargs
    return list(train_batches(source, transform, sampler, **arguments))


def test_the_sample_is_complete_and_balanced():
    train, test = open_sources(SAMPLE)
    assert (len(train), len(test)) == (10_000, 2_000)
    assert len(train.class_names) == 10 and "Sandal" in train.class_names
    assert np.bincount([test[i][1] for i in range(2_000)]).tolist() == [200] * 10
    image = decode(train[0][0])
    assert image.shape == (28, 28, 3) and image.dtype == np.uint8


def test_class_folders(class_folders):
    train, val = open_sources(class_folders)
    assert (len(train), len(val)) == (60, 21)
    assert train.class_names == ["ant", "bee", "cat"]
    image, label = DecodedSource(val)[7]
    assert label == 1 and np.asarray(image)[..., 1].min() >= 100


def test_any_prepared_tfds_dataset_works_by_name(tmp_path):
    import tensorflow_datasets as tfds

    class TinySet(tfds.core.GeneratorBasedBuilder):
        # In a module of a package TFDS would need importlib_resources to find this file.
        __module__ = "tiny_set"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "picture": tfds.features.Image(),
                "kind": tfds.features.ClassLabel(num_classes=2),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(6), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                png = io.BytesIO()
                Image.new("L", (5, 5), i).save(png, "PNG")
                png.seek(0)
                yield i, {"picture": png, "kind": i % 2}

    TinySet(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    train, test = open_sources("tiny_set", data_dir=str(tmp_path))
    assert (len(train), len(test)) == (6, 4)
    assert sorted(decode(train[i][0])[0, 0, 0] for i in range(6)) == list(range(6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="fashion_mnits"), "unknown dataset 'fashion_mnits'"),
        (dict(name="/no/such/folder"), "/no/such/folder does not exist"),
        (dict(name=SAMPLE, eval_split="dev"), "no split 'dev'; it has train, test"),
    ],
)
def test_data_that_is_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_sources(**arguments)


def test_a_corrupt_dataset_is_named(tmp_path):
    (tmp_path / "broken" / "1.0.0").mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        (tmp_path / "broken" / "1.0.0" / name).write_text("{")
    with pytest.raises(ValueError, match=r"broken under .* cannot be read"):
        open_sources("broken", data_dir=str(tmp_path))


def test_bad_folders(tmp_path):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match="train holds no images"):
        open_sources(str(tmp_path))  # and nothing is split off
    with pytest.raises(ValueError, match="no split 'validation'"):
        open_sources(str(tmp_path), eval_split="validation")
    (tmp_path / "val" / "wasp").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images"):
        open_sources(str(tmp_path))
    Image.new("RGB", (2, 2)).save(tmp_path / "train" / "ant" / "a.png")
    with pytest.raises(ValueError, match="wasp, unknown to the training"):
        open_sources(str(tmp_path))


def test_order_is_a_permutation_per_seed_and_epoch():
    first = permutation(0, 0, 1000)
    assert sorted(first) == list(range(1000))
    for other in (permutation(0, 1, 1000), permutation(1, 0, 1000)):
        assert (other != first).mean() > 0.98
    # These values are frozen, because another NumPy must not reorder a run that resumes.
    assert permutation(5, 2, 10).tolist() == FROZEN_ORDER
    assert image_random(5, 2, 7).random() == pytest.approx(FROZEN_RANDOM, abs=1e-15)


FROZEN_ORDER = [3, 5, 9, 2, 7, 1, 8, 0, 6, 4]
FROZEN_RANDOM = 0.645236325188978


def test_every_image_once_per_epoch_and_batches_full():
    batches = _take(_Numbers(24), total_steps=6)
    seen = np.concatenate([b["image"][:, 0, 0, 0] for b in batches])
    assert sorted(seen[:24]) == sorted(seen[24:]) == list(range(24))
    assert (seen[:24] != seen[24:]).any()
    # If an epoch ends within a batch, the next epoch fills the batch.
    batches = _take(_Numbers(20), total_steps=5)
    assert all(len(b["label"]) == 8 for b in batches)
    seen = np.concatenate([b["image"][:, 0, 0, 0] for b in batches])
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))


def _indices(sampler: Sampler, step: int) -> tuple[set[int], list[int]]:
    """The epochs and the images of a batch."""
    rows = [sampler.at(step, row)[:2] for row in range(sampler.batch_size)]
    return {epoch for epoch, _ in rows}, [index for _, index in rows]


def test_an_incomplete_last_batch_can_be_dropped():
    sampler = Sampler(seed=3, length=20, batch_size=8, drop_last=True)
    assert sampler.epoch_length == 16
    epochs, first = zip(*(_indices(sampler, step) for step in range(4)), strict=True)
    assert epochs == ({0}, {0}, {1}, {1})
    assert [*first[0], *first[1]] == permutation(3, 0, 20)[:16].tolist()
    # Otherwise a dataset smaller than a batch would have no batch at all.
    assert Sampler(seed=3, length=7, batch_size=8, drop_last=True).epoch_length == 7


def test_repeated_augmentation_as_the_original_spreads_it():
    """Each of 4 processes takes every 4th of a stream that repeats each image 3 times."""
    sampler = Sampler(seed=3, length=1000, batch_size=48, repeats=3, mix_groups=4)
    assert sampler.epoch_length == 768
    stream = np.repeat(permutation(3, 0, 1000), 3)[:768]
    draws = {}
    for step in range(16):
        epochs, indices = _indices(sampler, step)
        assert epochs == {0}
        groups = np.reshape(indices, (4, 12))
        for process in range(4):
            expected = stream[process::4][step * 12 : (step + 1) * 12]
            np.testing.assert_array_equal(groups[process], expected)
            # Copies of an image are never mixed with one another.
            assert len(set(groups[process])) == 12
        for row in range(48):
            _, index, rng = sampler.at(step, row)
            draws.setdefault(index, []).append(rng.random())
    assert len(draws) == 256
    assert all(len(set(numbers)) == 3 for numbers in draws.values())
    assert sampler.at(16, 0)[0] == 1
    with pytest.raises(ValueError, match=r"data\.repeats must be at least 1, got 0"):
        Sampler(seed=3, length=1000, batch_size=48, repeats=0)


def test_a_small_dataset_can_be_repeated():
    assert Sampler(seed=3, length=200, batch_size=8, repeats=3).epoch_length == 200


_JITTER = {"rand_augment": RandAugment(num_ops=2), "on_device": True}


@pytest.mark.parametrize(("start", "options"), [(1, {}), (4, _JITTER), (8, {})])
def test_a_resumed_stream_is_the_same(start, options):
    transform = TrainTransform("pad", (4, 4), pad=2, **options)
    whole = _take(_Numbers(21), transform)
    rest = _take(_Numbers(21), transform, start_step=start)
    assert len(rest) == 9 - start
    for a, b in zip(whole[start:], rest, strict=True):
        assert a.keys() == b.keys() == {"image", "label", *(["draws"] if options else [])}
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_order_does_not_depend_on_the_hosts(hosts):
    transform = TrainTransform("pad", (4, 4), pad=2, **_JITTER)
    whole = _take(_Numbers(21), transform)
    per_host = [
        _take(_Numbers(21), transform, process_index=h, process_count=hosts) for h in range(hosts)
    ]
    for step, batch in enumerate(whole):
        for key in ("image", "draws"):
            joined = np.concatenate([batches[step][key] for batches in per_host])
            np.testing.assert_array_equal(joined, batch[key])
    with pytest.raises(ValueError, match="divisible by the 3 hosts"):
        _take(_Numbers(21), process_count=3)


def test_a_large_batch_is_made_of_chunks():
    transform = TrainTransform("pad", (4, 4), pad=2)
    small = _take(_Numbers(200), transform, total_steps=26)
    large = _take(_Numbers(200), transform, total_steps=2, batch_size=104)  # three or four chunks
    for key in ("image", "label"):
        joined = np.concatenate([batch[key] for batch in large])
        np.testing.assert_array_equal(joined, np.concatenate([batch[key] for batch in small]))


@pytest.mark.parametrize("name", [pytest.param(SAMPLE, marks=pytest.mark.slow), "folder"])
def test_worker_processes_change_nothing(name, class_folders, monkeypatch):
    # Three worker processes; each prepares every third chunk.
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    train, _ = open_sources(SAMPLE if name == SAMPLE else f"folder:{class_folders}")
    source = DecodedSource(train)
    transform = TrainTransform("random_resized", (8, 8))
    arguments = dict(batch_size=72, start_step=1, total_steps=4)
    alone = _take(source, transform, **arguments)
    shared = _take(source, transform, **arguments, num_workers=3)
    assert len(alone) == len(shared) == 3
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


def test_memory_stays_flat_over_epochs(class_folders):
    source = DecodedSource(open_sources(class_folders)[0])
    batches = train_batches(
        source,
        TrainTransform("random_resized", (224, 224)),
        Sampler(seed=0, length=len(source), batch_size=20),
        start_step=0,
        total_steps=10**6,
        num_threads=2,
        put=lambda x: x,
        corrupt_images=CorruptImages("stop", print),
    )

    def resident() -> int:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def read(epochs: int) -> int:
        for _ in range(3 * epochs):
            next(batches)
        return resident()

    before = read(epochs=5)
    # 20 epochs of 60 images take 180 MB; keeping a third of them would fail here.
    assert read(epochs=20) - before < 60e6


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("length", [16, 21])
def test_evaluation_counts_every_image_once(hosts, length):
    transform = make_eval_transform((4, 4), resize=None)
    seen = []
    for host in range(hosts):
        for batch in eval_batches(
            _Numbers(length),
            transform,
            batch_size=8,
            num_threads=2,
            put=lambda x: x,
            corrupt_images=CorruptImages("stop", print),
            process_index=host,
            process_count=hosts,
        ):
            assert batch["image"].shape == (8 // hosts, 4, 4, 3)
            seen += batch["image"][batch["mask"]][:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(length))


def test_a_cached_source_decodes_once():
    class Counting:
        class_names = ("ant", "bee")
        multi_label = False
        reads = 0

        def __len__(self):
            return 1

        def __getitem__(self, index):
            self.reads += 1
            png = io.BytesIO()
            Image.new("L", (2, 2), 5).save(png, "PNG")
            return png.getvalue(), 1

        def describe(self, index):
            return "the only image"

    source = Counting()
    cached = DecodedSource(source, cache=True)
    assert np.array_equal(cached[0][0], cached[0][0])
    assert source.reads == 1
    plain = DecodedSource(source)
    assert plain[0][1] == plain[0][1] == 1
    assert source.reads == 3
