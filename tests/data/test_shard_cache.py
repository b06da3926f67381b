"""The cache of shards on a machine: whole files, a bound, and a bucket with faults."""

import collections
import errno
import os
import pathlib
import threading
import time

import pytest

from noah_jax.data.streaming import cache as cache_module
from noah_jax.data.streaming.ahead import ReadAhead
from noah_jax.data.streaming.cache import NoRoomError, ShardCache
from noah_jax.data.streaming.readers import openable
from noah_jax.data.streaming.shards import find_shards
from noah_jax.errors import InputError, ReadError, WriteError
from tests.bucket import as_bucket

SIZE = 1000


@pytest.fixture
def bucket(tmp_path):
    """Twelve shards of 1,000 bytes."""
    folder = tmp_path / "bucket" / "a"
    folder.mkdir(parents=True)
    for number in range(12):
        (folder / f"{number:02}.tar").write_bytes(bytes([number]) * SIZE)
    with as_bucket(tmp_path / "bucket") as bucket:
        yield bucket


@pytest.fixture
def shards(bucket):
    return find_shards("gs://bucket/a/{00..11}.tar")


@pytest.fixture
def cache(tmp_path):
    return ShardCache(str(tmp_path / "cache"), gigabytes=3.5 * SIZE / 1e9)


def _held(cache, shards):
    return [number for number, shard in enumerate(shards) if cache.holds(shard)]


def _files(cache):
    return sorted(path.name for path in pathlib.Path(cache.folder).iterdir() if path.is_file())


def test_a_shard_is_downloaded_once_and_is_whole(bucket, shards, cache):
    for _ in range(2):
        assert cache.open(shards[3]).read(990, 10) == bytes([3]) * 10
    assert bucket.reads == {"03.tar": 1}
    assert ShardCache(cache.folder).open(shards[3]).read(0, 1) == b"\3"  # a restart
    assert bucket.reads == {"03.tar": 1}
    # Another version of the object is another shard.
    (pathlib.Path(bucket.path) / "a/03.tar").write_bytes(b"x" * SIZE)
    (again,) = find_shards("gs://bucket/a/03.t*")
    assert cache.open(again).read(0, 1) == b"x"


def test_what_was_opened_longest_ago_makes_room(shards, cache):
    other = pathlib.Path(cache.folder) / "thesis.tex"  # of somebody who named this folder
    other.parent.mkdir()
    other.write_bytes(bytes(100 * SIZE))
    os.utime(other, (0, 0))
    for number in (0, 1, 2, 0, 3):
        cache.open(shards[number])
        time.sleep(0.002)  # The file system's clock ticks more slowly than this program runs.
    assert _held(cache, shards) == [0, 2, 3] and other.exists()


def test_what_is_read_stays(shards, cache, capsys):
    reading = [cache.open(shard) for shard in shards[:3]]
    with pytest.raises(NoRoomError):
        cache.fetch(shards[3])
    assert _held(cache, shards) == [0, 1, 2] and len(_files(cache)) == 3
    # What is needed at once is taken all the same, and said.
    fourth = cache.open(shards[3])
    assert _held(cache, shards) == [0, 1, 2, 3]
    assert "the shards that are read at once take more than" in capsys.readouterr().err
    assert reading[0].read(0, 1) == b"\0" and fourth.read(0, 1) == b"\3"
    del reading, fourth
    cache.fetch(shards[4])
    assert len(_held(cache, shards)) == 3


def test_many_threads_download_a_shard_once(bucket, shards, cache):
    bucket.fail = lambda name: time.sleep(0.01)
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(cache.open(shards[n % 2]).read(0, 1)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [b"\0"] * 4 + [b"\1"] * 4
    assert bucket.reads == {"00.tar": 1, "01.tar": 1} and bucket.most_busy <= 2


def test_what_a_killed_download_left_is_removed(shards, cache):
    cache.open(shards[0])
    (whole,) = _files(cache)
    unfinished = (
        pathlib.Path(cache.folder) / f".{whole.replace('00.tar', '99.tar')}.partial-4194304"
    )
    other = unfinished.with_name(f".{'f' * 32}-98.tar.partial-4194304")
    for left in (unfinished, other):
        left.write_bytes(bytes(SIZE))
        os.utime(left, (0, 0))
    for number in (1, 2, 3):
        cache.open(shards[number])
    assert not unfinished.exists() and not other.exists()
    # While somebody holds its lock it is being written.
    other.write_bytes(bytes(SIZE))
    os.utime(other, (0, 0))
    with cache._locked(cache_module._lock_of("f" * 32)):
        cache.open(shards[5])
        assert other.exists()


def test_broken_requests_are_tried_again(bucket, shards, cache):
    faults = [ConnectionError("broken"), OSError("reset by peer")]

    def fail(name):
        if faults:
            raise faults.pop()

    bucket.fail = fail
    assert cache.open(shards[1]).read(0, 1) == b"\1"
    bucket.spoil = lambda name, data: data[:-1]
    words = r"gs://bucket/a/02\.tar cannot be downloaded, tried 3 times: it gave 999 of 1,000 bytes"
    with pytest.raises(ReadError, match=words):
        cache.open(shards[2])
    faults += [TimeoutError("no answer")] * 3
    with pytest.raises(ReadError, match="tried 3 times: no answer"):
        cache.open(shards[2])
    (pathlib.Path(bucket.path) / "a/02.tar").unlink()
    bucket.spoil = lambda name, data: data
    with pytest.raises(ReadError, match=r"02\.tar is not there any more"):
        cache.open(shards[2])
    assert len(_files(cache)) == 1


def test_a_wrong_checksum_is_named(bucket, shards, cache):
    spoilt = []

    def spoil_once(name, data):
        spoilt.append(name)
        return data if len(spoilt) > 1 else b"x" + data[1:]

    bucket.spoil = spoil_once
    assert cache.open(shards[1]).read(0, 2) == b"\1\1" and len(spoilt) == 2
    bucket.spoil = lambda name, data: b"x" + data[1:]
    words = (
        r"gs://bucket/a/02\.tar arrived 2 times with the crc32c \w{8}, and its bucket says \w{8}"
    )
    with pytest.raises(ReadError, match=words):
        cache.open(shards[2])
    assert _held(cache, shards) == [1] and len(_files(cache)) == 1


def test_a_full_disk_is_one_line(shards, cache, monkeypatch):
    def full(shard, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "download", full)
    words = (
        r"cache is on a full disk \(No space left on device\), and gs://bucket/a/00\.tar does not"
    )
    with pytest.raises(WriteError, match=words):
        cache.open(shards[0])
    assert _files(cache) == []


def test_a_cache_that_is_larger_than_its_disk_is_refused(shards, tmp_path, monkeypatch):
    cache = ShardCache(str(tmp_path / "a" / "b"), gigabytes=64)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 2 * SIZE))
    cache.check_space(2 * SIZE)
    with pytest.raises(
        InputError, match=r"a/b has room for 2e-06 GB of shards, and 1\.2e-05 GB are"
    ):
        cache.check_space(12 * SIZE)
    cache.open(shards[0])  # What is here already needs no room.
    cache.check_space(3 * SIZE)


def test_shards_that_are_not_there(bucket):
    for pattern, words in (
        ("gs://bucket/a/{10..12}.tar", "the shard gs://bucket/a/12.tar does not exist"),
        ("gs://bucket/a/12.tar", "the shard gs://bucket/a/12.tar does not exist"),
        ("gs://bucket/b/*.tar", r"no file matches gs://bucket/b/\*\.tar"),
    ):
        with pytest.raises(InputError, match=words):
            find_shards(pattern)

    def refuse(*args, **kwargs):
        raise PermissionError("your login\nlacks rights")

    bucket.ls = bucket.info = bucket.glob = refuse
    for pattern, words in (
        ("gs://bucket/a/{0..1}.tar", "gs://bucket/a cannot be listed: your login lacks rights"),
        ("gs://bucket/a/0.tar", "gs://bucket/a/0.tar cannot be found: your login lacks rights"),
        ("gs://bucket/a/*.tar", r"gs://bucket/a/\*\.tar cannot be listed"),
    ):
        with pytest.raises(ReadError, match=words):
            find_shards(pattern)


@pytest.mark.parametrize(
    ("soft", "hard", "expected", "becomes"),
    [
        (1024, 4096, 1000, 1512),
        (1024, 1200, 688, 1200),
        (1024, -1, 1000, 1512),
        (4096, 4096, 1000, None),
        (-1, -1, 1000, None),
        (256, 256, 1, 256),
    ],
)
def test_the_limit_of_open_files(soft, hard, expected, becomes, monkeypatch):
    changes = []
    monkeypatch.setattr("resource.getrlimit", lambda kind: (soft, hard))
    monkeypatch.setattr("resource.setrlimit", lambda kind, limits: changes.append(limits))
    assert openable(1000) == expected
    assert changes == ([] if becomes is None else [(becomes, hard)])


def _wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_next_group_is_downloaded_and_no_more(bucket, shards, cache):
    cache.capacity = 20 * SIZE
    groups = [((0, 0), [4, 5]), ((0, 1), [0, 1]), ((1, 0), [2, 3]), ((1, 1), [6])]
    ahead = ReadAhead(cache, shards, groups, ahead=1)
    try:
        ahead.reached((0, 0))
        _wait_for(lambda: _held(cache, shards) == [0, 1, 4, 5])
        time.sleep(0.05)
        assert _held(cache, shards) == [0, 1, 4, 5]
        bucket.fail = lambda name: 1 / (name != "02.tar")  # Who reads it will be told of the error.
        ahead.reached((0, 1))
        _wait_for(lambda: _held(cache, shards) == [0, 1, 3, 4, 5])
        ahead.reached((1, 1))
        _wait_for(lambda: _held(cache, shards) == [0, 1, 3, 4, 5, 6])
    finally:
        ahead.stop()


def test_reading_ahead_waits_for_room(shards, cache, monkeypatch):
    monkeypatch.setattr("noah_jax.data.streaming.ahead._SECONDS_BETWEEN_TRIES", 0.01)
    reading = [cache.open(shard) for shard in shards[:3]]
    ahead = ReadAhead(cache, shards, [((0, 0), [7])], ahead=1)
    try:
        ahead.reached((0, 0))
        time.sleep(0.05)
        assert _held(cache, shards) == [0, 1, 2]
        reading.pop(0)
        _wait_for(lambda: _held(cache, shards) == [1, 2, 7])
    finally:
        ahead.stop()
