"""Images from buckets through a small cache: their order, and what a run says and refuses."""

import collections
import errno
import pathlib
import shutil

import numpy as np
import pytest

from noah_jax.config import default_config
from noah_jax.data.batches import eval_batches, train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.record import record_data
from noah_jax.data.setup import make_sampler, open_data
from noah_jax.data.shard_order import ShardWindows
from noah_jax.data.sources import open_sources
from noah_jax.data.streaming.cache import ShardCache
from noah_jax.data.transforms import TrainTransform, make_eval_transform
from noah_jax.data.window_choice import choose_window, describe_window
from noah_jax.errors import InputError, WriteError
from tests.bucket import as_bucket
from tests.shards import write_mixed_shards, write_webdataset

KINDS = ("wds", "array_record")
SHARDS = 10  # of 6 training images each


@pytest.fixture(scope="module")
def folder(class_folders, tmp_path_factory):
    """A folder with the same images as WebDataset and as ArrayRecord shards, in a random order."""
    root = tmp_path_factory.mktemp("bucket")
    write_mixed_shards(root, class_folders, shards=SHARDS)
    return root


@pytest.fixture
def bucket(folder):
    with as_bucket(folder) as bucket:
        yield bucket


def _name(kind, root):
    if kind == "wds":
        return {"name": f"wds:{root}/wds"}
    return {"name": "mixed", "data_dir": f"{root}/tfds"}


def _size(sources):
    return max(shard.size for shard in sources[0].shard_set.shards)


def _open(kind, tmp_path, shards_that_fit, root="gs://bucket"):
    """Opens the sources with a cache for a number of training shards, and the evaluation's."""
    cache = ShardCache(str(tmp_path / "cache"))
    sources = open_sources(**_name(kind, root), cache=cache)
    room = shards_that_fit + 0.5
    capacity = _size(sources) * room / 0.75  # A quarter is for the evaluation.
    for path in pathlib.Path(cache.folder).glob("*-*"):
        path.unlink()
    return open_sources(**_name(kind, root), cache=ShardCache(cache.folder, capacity / 1e9))


def _sampler(source, window, **keys):
    section = default_config().data
    section.update(keys)
    section.shuffle_window = window
    return make_sampler(section, source, seed=3, batch_size=8, mix_group=None)


def _take(source, sampler, **arguments):
    arguments = dict(start_step=0, total_steps=20, num_threads=2) | arguments
    return list(
        train_batches(
            DecodedSource(source),
            TrainTransform("pad", (28, 28), pad=2),
            sampler,
            put=lambda batch: batch,
            corrupt_images=CorruptImages("stop", print),
            **arguments,
        )
    )


def _assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("kind", KINDS)
def test_order_resume_and_hosts_through_a_cache_that_holds_part_of_the_set(
    kind, folder, bucket, tmp_path
):
    local, _ = open_sources(**_name(kind, folder), cache=ShardCache(str(tmp_path / "local")))
    expected = _take(local, _sampler(local, 2))
    train, evaluation = _open(kind, tmp_path, 4)
    window = choose_window(None, train, evaluation)
    assert window == 2
    bucket.reads.clear()
    whole = _take(train, _sampler(train, window))
    _assert_equal(whole, expected)
    # 20 steps are 2.7 epochs, and an epoch goes through each shard once. One more is read ahead.
    assert max(bucket.reads.values()) in (2, 3, 4)
    files = [
        path for path in pathlib.Path(train.shard_set.cache.folder).iterdir() if path.is_file()
    ]
    assert sum(path.stat().st_size for path in files) <= train.shard_set.cache.capacity
    for step in (1, 9):
        _assert_equal(_take(train, _sampler(train, window), start_step=step), expected[step:])
    hosts = [
        _take(train, _sampler(train, window), process_index=host, process_count=2, total_steps=9)
        for host in range(2)
    ]
    for step in range(9):
        for key in ("image", "label"):
            rows = np.concatenate([batches[step][key] for batches in hosts])
            np.testing.assert_array_equal(rows, expected[step][key])
    seen = collections.Counter()
    for batch in eval_batches(
        DecodedSource(evaluation),
        make_eval_transform((28, 28), resize=None),
        batch_size=8,
        num_threads=2,
        put=lambda batch: batch,
        corrupt_images=CorruptImages("stop", print),
    ):
        seen.update(batch["label"][batch["mask"]].tolist())
    assert seen == {0: 7, 1: 7, 2: 7}


@pytest.mark.parametrize("kind", KINDS)
def test_all_images_are_shuffled_where_the_cache_holds_them(kind, folder, bucket, tmp_path):
    local, _ = open_sources(**_name(kind, folder), cache=ShardCache(str(tmp_path / "local")))
    train, evaluation = _open(kind, tmp_path, SHARDS)
    assert choose_window(None, train, evaluation) is None
    assert choose_window(None, *open_sources(**_name(kind, folder))) is None
    bucket.reads.clear()
    _assert_equal(_take(train, _sampler(train, None)), _take(local, _sampler(local, 0)))
    assert set(bucket.reads.values()) == {1}


@pytest.mark.slow
def test_worker_processes_share_the_cache(folder, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    train, _ = _open("wds", tmp_path, SHARDS)  # TFDS's would ask the bucket for its metadata.
    alone = _take(train, _sampler(train, 2), total_steps=8)
    bucket.fail = lambda name: pytest.fail(f"{name} was downloaded again")
    shared = _take(train, _sampler(train, 2), total_steps=8, num_workers=2)
    _assert_equal(shared, alone)


def test_what_is_chosen_and_what_is_refused(folder, bucket, tmp_path, class_folders, capsys):
    train, evaluation = _open("wds", tmp_path, 4)

    def refused(window, sources, words):
        with pytest.raises(InputError, match=words):
            choose_window(window, *sources)

    sources = train, evaluation
    assert [choose_window(window, *sources) for window in (None, 1, 4)] == [2, 1, 4]
    refused(0, sources, "10 shards with .* GB for them, too little to shuffle all images; raise")
    refused(5, sources, "too little for data.shuffle_window=5; raise data.cache_gb")
    folders = open_sources(class_folders)
    refused(2, folders, "data.shuffle_window=2 needs images in shards, and .* has none")
    assert choose_window(None, *folders) is None
    # A window is larger the larger the cache is, but no larger than the set.
    assert choose_window(None, *_open("wds", tmp_path, 2)) == 1
    refused(None, _open("wds", tmp_path, 0), "too little for a single one; raise data.cache_gb")
    windows = ShardWindows(train.shard_lengths, 2)
    said = describe_window(windows, train)
    assert "within windows of 2 of 10 shards, drawn anew each epoch, not as a whole;" in said
    assert describe_window(None, folders[0]) is None
    assert "10 of 10 shards are to be downloaded" in describe_window(None, train)
    records = [record_data(*sources), record_data(*sources, windows=windows)]
    assert records[0]["train"] != records[1]["train"] and records[0]["eval"] == records[1]["eval"]


def test_shards_of_one_class_are_not_chosen_for_windows(class_folders, tmp_path):
    write_webdataset(tmp_path / "b" / "wds", class_folders, shards=6)
    with as_bucket(tmp_path / "b"):
        sources = _open("wds", tmp_path, 4)
        with pytest.raises(
            InputError, match=r"train-0000\.tar has one class only: raise data\.cach"
        ):
            choose_window(None, *sources)
        assert choose_window(2, *sources) == 2


def test_opening_a_set_in_a_bucket_downloads_one_shard_of_each_split(folder, bucket, tmp_path):
    section = default_config().data
    section.dir = "gs://bucket/tfds"
    section.cache_dir = str(tmp_path / "cache")
    train, evaluation = open_data("mixed", section)
    assert (len(train), len(evaluation)) == (60, 21)
    assert {name.split(".")[0]: count for name, count in bucket.reads.items()} == {
        "mixed-train": 1,
        "mixed-val": 1,
    }
    assert train.shard_set.cache.folder == str(tmp_path / "cache")


def test_a_corrupt_shard_is_named(folder, tmp_path):
    shutil.copytree(folder / "tfds", tmp_path / "b" / "tfds")
    for path in (tmp_path / "b/tfds/mixed/1.0.0").glob("*train.array_record*"):
        path.write_bytes(b"nothing of the kind" * 100)
    with as_bucket(tmp_path / "b"):
        train, _ = open_sources(
            "mixed", data_dir="gs://bucket/tfds", cache=ShardCache(tmp_path / "c")
        )
        with pytest.raises(InputError, match=r"mixed-train\.array_record\S+ cannot be read"):
            train[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_no_corrupt_image(kind, folder, bucket, tmp_path, monkeypatch):
    def full(shard, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    train, _ = _open(kind, tmp_path, 4)
    monkeypatch.setattr("noah_jax.data.streaming.cache.download", full)
    with pytest.raises(WriteError, match="is on a full disk"):
        _take(train, _sampler(train, 2), total_steps=1)


def test_the_number_of_open_shards_is_bounded(folder, bucket, tmp_path):
    train, evaluation = _open("array_record", tmp_path, 4)
    choose_window(None, train, evaluation)
    for index in range(0, 60, 5):
        train[index]
    assert len(train.shard_set._readers._readers) == 2
