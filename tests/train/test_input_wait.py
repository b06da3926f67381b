"""How long the devices wait for images, and what the log says of it."""

import threading
import time
import types

import pytest

from noah_jax.config import default_config
from noah_jax.train.device_idle import DeviceIdle
from noah_jax.train.wait_notice import WaitNotice, describe_wait


class Step:
    """The result of a step that runs until it is told to finish, or for some time."""

    def __init__(self, seconds: float | None = None):
        self._finished = threading.Event()
        self._end = None if seconds is None else time.perf_counter() + seconds

    def finish(self):
        self._finished.set()

    def block_until_ready(self):
        if self._end is None:
            self._finished.wait()
        else:
            time.sleep(max(0.0, self._end - time.perf_counter()))


@pytest.fixture
def idle():
    with DeviceIdle() as idle:
        yield idle


def _until_idle(idle, begin):
    deadline = time.perf_counter() + 30
    while not idle.since(begin) and time.perf_counter() < deadline:
        time.sleep(0.001)
    return idle.since(begin)


def test_devices_that_compute_do_not_wait(idle):
    first, second = Step(), Step()
    idle.step(first)
    idle.step(second)
    begin = time.perf_counter()
    first.finish()
    time.sleep(0.02)
    assert idle.since(begin) == 0  # the second step is under way
    second.finish()
    waited = _until_idle(idle, begin)
    assert 0 < waited < time.perf_counter() - begin - 0.02  # only since it was finished


def test_the_wait_begins_when_the_loop_asks_for_a_batch(idle):
    step = Step()
    idle.step(step)
    step.finish()
    assert _until_idle(idle, 0.0)
    time.sleep(0.02)
    begin = time.perf_counter()
    assert idle.since(begin) <= time.perf_counter() - begin


def test_before_the_first_step_there_is_nothing_to_do(idle):
    begin = time.perf_counter()
    time.sleep(0.01)
    assert 0.01 <= idle.since(begin) <= time.perf_counter() - begin


def test_a_step_that_fails_is_left_to_the_loop(idle):
    def fail():
        raise RuntimeError("the device is gone")

    idle.step(types.SimpleNamespace(block_until_ready=fail))
    time.sleep(0.01)
    assert idle.since(0.0) == 0


@pytest.mark.parametrize(
    ("step", "input", "low", "high"), [(0.02, 0.06, 0.3, 0.95), (0.06, 0.002, 0.0, 0.15)]
)
def test_a_loop_that_runs_ahead(idle, step, input, low, high):
    """The loop of the training: two steps in flight, and each batch takes its time.

    With a slow input the loop waits all the time, and the devices only for two thirds of it; with
    a fast one nobody waits for images.
    """
    flight, waited, busy_until = [], 0.0, 0.0
    start = time.perf_counter()
    for _ in range(12):
        begin = time.perf_counter()
        time.sleep(input)
        waited += idle.since(begin)
        now = time.perf_counter()
        busy_until = max(now, busy_until) + step
        flight.append(Step(busy_until - now))
        idle.step(flight[-1])
        if len(flight) > 2:
            flight.pop(0).block_until_ready()
    assert low <= waited / (time.perf_counter() - start) <= high


def test_the_wait_is_told_once_and_when_it_is_much_worse():
    notice = WaitNotice(default_config().data)
    waits = [0.9, 0.05, 0.3, 0.4, 0.6, 0.6, 0.9]
    told = [notice.after(wait, 1_000.0) is not None for wait in waits]
    # Not in the first interval, in which the first images are read.
    assert told == [False, False, True, False, True, False, True]


def test_the_notice_says_what_would_help(monkeypatch):
    monkeypatch.setattr("noah_jax.train.wait_notice.num_cores", lambda: 16)
    section = default_config().data
    section.rand_augment.num_ops = 2
    line = describe_wait(section, 0.6, 1_000.0)
    assert "waited for images for 60 % of the time" in line
    assert "16 cores give 1,000 images/s, the step could take 2,500" in line
    assert "data.augment_on_device=True, data.approximate_decode=True, " in line
    assert "benchmark --what input --against-step" in line
    section.augment_on_device = True
    assert "augment_on_device" not in describe_wait(section, 0.6, 1_000.0)
