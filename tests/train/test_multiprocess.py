"""Tests the training program on several processes: equal to one, and it survives faults."""

import json
import pathlib
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from noah_jax import load_model
from tests.helpers import write_class_folders
from tests.train import processes

pytestmark = pytest.mark.multiprocess

STEPS = 40
FOUR_STEPS = "--config.epochs=1.1"
# Lost processes are given up sooner than with the default: the signs of life come every 2 s.
QUICK_WATCHDOG = "--config.watchdog_seconds=16"


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> str:
    """60 and 21 JPEG images of three classes and many sizes."""
    root = tmp_path_factory.mktemp("jpegs")
    write_class_folders(root, "jpg", lambda random: tuple(random.randint(28, 60, 2)))
    return str(root)


@pytest.fixture(scope="module")
def two(jpegs, tmp_path_factory) -> pathlib.Path:
    """The folder of an undisturbed run of two processes."""
    return _finish(tmp_path_factory.mktemp("two") / "run", jpegs, 2)


@pytest.fixture(scope="module")
def one(jpegs, tmp_path_factory) -> pathlib.Path:
    """The folder of one process's run, of its first steps."""
    keys = ["--config.data.num_threads=1", FOUR_STEPS]
    return _finish(tmp_path_factory.mktemp("one") / "run", jpegs, 1, *keys)


def _finish(workdir: pathlib.Path, data: str, count: int, *keys: str) -> pathlib.Path:
    run = processes.start(workdir, data, count, *keys)
    assert run.wait() == [0] * count, run.said(0) + run.said(count - 1)
    return workdir


def _copy(workdir: pathlib.Path, target: pathlib.Path, last: int = STEPS) -> pathlib.Path:
    """An unfinished run that has saved the steps up to `last`."""
    shutil.copytree(workdir, target)
    (target / "results.json").unlink()
    for step in _saved(target):
        if step > last:
            shutil.rmtree(target / "checkpoints" / str(step))
    return target


def _losses(workdir: pathlib.Path, split: str = "train") -> np.ndarray:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if line["split"] == split])


def _assert_same_weights(workdir: pathlib.Path, other: pathlib.Path) -> None:
    for ema in (False, True):
        _, *actual = load_model(str(workdir), ema=ema)
        _, *expected = load_model(str(other), ema=ema)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    np.testing.assert_array_equal(_losses(workdir), _losses(other))


def _saved(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def _assert_first_steps_equal(workdir: pathlib.Path, other: pathlib.Path) -> None:
    # Before rounding carries an activation over ReLU's edge.
    np.testing.assert_allclose(_losses(workdir)[:3], _losses(other)[:3], rtol=1e-5)


def test_two_processes_take_the_steps_of_one(two, one):
    _assert_first_steps_equal(two, one)


@pytest.mark.slow
def test_four_processes_take_the_steps_of_one(one, jpegs, tmp_path):
    _assert_first_steps_equal(_finish(tmp_path / "four", jpegs, 4, FOUR_STEPS), one)


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_an_uneven_evaluation_is_exact_on_any_number(two, jpegs, tmp_path, count):
    # 21 images in batches of 16; only the evaluation is left to do.
    workdir = _finish(_copy(two, tmp_path / "run"), jpegs, count)
    actual, expected = (json.loads((w / "results.json").read_text()) for w in (workdir, two))
    assert actual["examples"] == 21
    for key in ("top1", "top5", "ema_top1", "ema_top5"):
        assert actual[key] == expected[key]
    for key in ("loss", "ema_loss"):
        assert actual[key] == pytest.approx(expected[key], rel=1e-6)


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_going_on_with_another_number_of_processes(two, jpegs, tmp_path, count):
    workdir = _copy(two, tmp_path / "run", last=30)
    _finish(workdir, jpegs, count, "--config.data.num_threads=3")
    actual, expected = _losses(workdir), _losses(two)
    assert len(actual) == STEPS
    # The same images in the same order; later, rounding has grown.
    np.testing.assert_array_equal(actual[:30], expected[:30])
    np.testing.assert_allclose(actual[30:32], expected[30:32], rtol=1e-4)


@pytest.mark.slow
def test_processes_that_share_the_state_take_the_same_steps(jpegs, tmp_path):
    # Wide, so that there are arrays worth sharing; 22 steps, two more than are saved on the way.
    keys = ["--config.model.width=16", "--config.epochs=5.9"]
    workdir = tmp_path / "run"
    run = processes.start(workdir, jpegs, 2, *keys, "--config.shard_state=True")
    assert run.wait() == [0, 0], run.said(0) + run.said(1)
    held, whole = re.search(
        r"a device holds (\S+) MiB of the state's (\S+) MiB", run.said(0)
    ).groups()
    assert float(held) < 0.7 * float(whole)
    # One process, which holds all of it, goes on.
    alone = _finish(_copy(workdir, tmp_path / "alone", last=20), jpegs, 1, *keys)
    np.testing.assert_allclose(_losses(alone)[20:22], _losses(workdir)[20:22], rtol=1e-4)


def test_sigterm_to_one_stops_all_at_the_same_step(two, jpegs, tmp_path):
    workdir = tmp_path / "run"
    last = 0
    for victim in (1, 0):
        # So long that it cannot finish in the second until JAX's service notices.
        run = processes.start(workdir, jpegs, 2, "--config.epochs=500")
        run.wait_for(f"step {last + 2}/")
        run.signal(victim, signal.SIGTERM)
        assert run.wait() == [75, 75], run.said(0) + run.said(1)
        assert last == 0 or f"going on after step {last} of" in run.said(0)
        last = max(_saved(workdir))
        assert f"stopped after step {last} of 1875, which is saved" in run.said(0)
        assert len(_losses(workdir)) == last
    count = min(last, STEPS)
    np.testing.assert_array_equal(_losses(workdir)[:count], _losses(two)[:count])


def test_sigkill_during_a_save_loses_no_more_than_its_steps(two, jpegs, tmp_path):
    workdir = _copy(two, tmp_path / "run", last=10)
    run = processes.start(workdir, jpegs, 2, QUICK_WATCHDOG)
    run.wait_until(lambda: list((workdir / "checkpoints").glob("20*tmp*")))
    run.signal(1, signal.SIGKILL)
    codes = run.wait()
    assert codes[1] == -signal.SIGKILL
    # JAX's own thread may be the first to notice, and aborts.
    assert codes[0] in (75, -signal.SIGABRT), run.said(0)
    assert _saved(workdir) == [10]
    _finish(workdir, jpegs, 2)
    _assert_same_weights(workdir, two)


def test_the_watchdog_ends_a_run_that_waits_for_a_stopped_process(jpegs, tmp_path):
    run = processes.start(tmp_path / "run", jpegs, 2, QUICK_WATCHDOG)
    run.wait_for(f"step 3/{STEPS}")
    run.signal(1, signal.SIGSTOP)
    try:
        assert run.processes[0].wait(240) == 75
    finally:
        run.signal(1, signal.SIGCONT)
    said = run.said(0)
    assert "error: process 0 of 2: process 1 of 2 has not been heard of for" in said
    assert "most recent call first" in said and "in train" in said  # all stacks
    assert run.wait()[1] not in (0, 1)


def test_processes_that_differ_say_so_and_leave_nothing(jpegs, tmp_path):
    run = processes.start(tmp_path / "run", jpegs, 2, last_keys=["--config.batch_size=8"])
    assert run.wait() == [1, 1]
    for index in (0, 1):
        assert "config.batch_size is 8, 16 on process 0" in run.said(index)
        assert "process 1 of 2 on " in run.said(index)
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_process_ends_all_with_its_reason(jpegs, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(jpegs, data)
    (data / "train" / "bee" / "07.jpg").write_bytes(b"")
    run = processes.start(tmp_path / "run", str(data), 2, "--config.data.on_corrupt_image=stop")
    assert run.wait() == [1, 1]
    for index in (0, 1):
        assert "07.jpg cannot be decoded: it is empty" in run.said(index)
    assert sum("ends because process" in run.said(index) for index in (0, 1)) == 1


def test_a_non_finite_loss_stops_all_before_it_is_saved(jpegs, tmp_path):
    workdir = tmp_path / "run"
    keys = ["--config.optim.learning_rate=1e30", "--config.optim.schedule=constant"]
    run = processes.start(workdir, jpegs, 2, *keys)
    assert run.wait() == [1, 1], run.said(0) + run.said(1)
    (path,) = workdir.glob("nonfinite-*.json")
    facts = json.loads(path.read_text())
    assert f"is not finite at step {facts['step']}" in run.said(0)
    assert len(facts["image_indices"]) == 16
    assert _saved(workdir) == []


def test_a_flipped_bit_is_noticed_by_all(two, jpegs, tmp_path):
    workdir = _copy(two, tmp_path / "run")
    files = [p for p in (workdir / "checkpoints" / "40").rglob("*") if p.is_file()]
    payload = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(bytes(data))
    run = processes.start(workdir, jpegs, 2)
    assert run.wait() == [0, 0], run.said(0) + run.said(1)
    assert "going on from the older checkpoint of step 30" in run.said(0)
    _assert_same_weights(workdir, two)


def test_a_full_disk_fails_loudly_and_spares_what_is_saved(two, jpegs, tmp_path):
    workdir = _copy(two, tmp_path / "run", last=20)
    run = processes.start(workdir, jpegs, 2, largest_file=2**14)  # a checkpoint has larger ones
    codes = run.wait()
    assert codes == [1, 1], run.said(0) + run.said(1)
    assert "File too large" in run.said(0) + run.said(1)
    assert _saved(workdir) == [10, 20]
    _finish(workdir, jpegs, 2)
    _assert_same_weights(workdir, two)
