"""The order of images by windows of shards."""

import numpy as np
import pytest

from noah_jax.data.sampler import Sampler
from noah_jax.data.shard_order import ShardWindows

LENGTHS = (5, 3, 0, 7, 4, 6, 5)  # 30 images
SHARD_OF = np.repeat(np.arange(7), LENGTHS)


def _epoch(windows, seed, epoch):
    return [windows.index(seed, epoch, position) for position in range(30)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_each_epoch_has_every_image_once_and_windows_few_shards(count):
    windows = ShardWindows(LENGTHS, count)
    for epoch in range(3):
        order = _epoch(windows, 4, epoch)
        assert sorted(order) == list(range(30))
        at = [windows.window(4, epoch, position) for position in range(30)]
        assert at == sorted(at)
        for window in range(windows.per_epoch):
            shards = windows.shards(4, epoch, window)
            assert 1 <= len(shards) <= count
            images = [image for image, number in zip(order, at, strict=True) if number == window]
            assert set(SHARD_OF[images]) == {n for n in shards if LENGTHS[n]}
    # Shards and images are drawn anew for each epoch and seed.
    orders = [_epoch(windows, *drawn) for drawn in ((4, 0), (4, 1), (5, 0))]
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_a_window_is_shuffled_well():
    windows = ShardWindows((100,) * 4, 2)
    order = np.array([windows.index(0, 0, position) for position in range(200)])
    assert abs(np.corrcoef(np.arange(200), order)[0, 1]) < 0.3
    first = set(order[:100] // 100)
    assert len(first) == 2  # both shards


def test_an_order_is_frozen():
    # Another NumPy must not reorder a run that resumes.
    assert _epoch(ShardWindows(LENGTHS, 3), 5, 2) == FROZEN


FROZEN = [
    13,
    8,
    14,
    12,
    10,
    11,
    9,
    20,
    23,
    5,
    19,
    21,
    6,
    22,
    24,
    7,
    16,
    4,
    26,
    29,
    25,
    28,
    18,
    3,
    2,
    17,
    1,
    0,
    15,
    27,
]


def _rows(sampler, step):
    return [sampler.at(step, row) for row in range(sampler.batch_size)]


def test_the_rules_of_a_sampler_hold_with_windows():
    windows = ShardWindows(LENGTHS, 3)
    plain = Sampler(seed=5, length=30, batch_size=8, windows=windows)
    stream = [index for step in range(8) for _, index, _ in _rows(plain, step)]
    assert stream[:60] == _epoch(windows, 5, 0) + _epoch(windows, 5, 1)
    assert plain.window_at(0) == (0, 0) and plain.window_at(3) == (1, 0)
    dropped = Sampler(seed=5, length=30, batch_size=8, windows=windows, drop_last=True)
    assert [index for _, index, _ in _rows(dropped, 3)] == _epoch(windows, 5, 1)[:8]
    lengths = (100,) * 10
    windows = ShardWindows(lengths, 2)
    repeated = Sampler(seed=5, length=1000, batch_size=48, repeats=3, mix_groups=4, windows=windows)
    assert repeated.epoch_length == 768
    seen = [index for step in range(16) for _, index, _ in _rows(repeated, step)]
    assert sorted(seen) == sorted(3 * [windows.index(5, 0, i) for i in range(256)])
    # The copies of an image are in different groups.
    groups = np.reshape([index for _, index, _ in _rows(repeated, 0)], (4, 12))
    assert all(len(set(group)) == 12 for group in groups)
    # What is drawn for an image does not depend on its order.
    whole = Sampler(seed=5, length=30, batch_size=30)
    draws = {index: random.random() for _, index, random in _rows(whole, 0)}
    assert {i: r.random() for _, i, r in _rows(plain, 0)}.items() <= draws.items()
