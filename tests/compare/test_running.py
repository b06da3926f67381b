"""Tests how trainings run: several at once, each at its place, and together to their end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from noah_jax.compare import places
from noah_jax.compare.places import Place, find_places, share_cores, share_devices
from noah_jax.compare.running import Job, Runner
from noah_jax.errors import UsageError

HERE = Place({}, None)


def _job(number: int, code: str) -> Job:
    return Job(number, f"run{number}", [sys.executable, "-c", code], f"[{number}]")


def test_a_job_that_fails_does_not_lose_the_others(capfd):
    codes = [
        "raise SystemExit(3)",
        "print('one'); print('two')",
        "import os; os.kill(os.getpid(), 9)",
    ]
    jobs = [_job(number, code) for number, code in enumerate(codes)]
    assert sorted(Runner([HERE, HERE]).run(jobs)) == [(0, 3), (1, 0), (2, -signal.SIGKILL)]
    lines = capfd.readouterr().err.splitlines()
    # Lines can be told apart, and none is lost.
    assert {"[0]", "[1]", "[2]", "run1 | one", "run1 | two"} <= set(lines)


def test_one_at_a_time_has_the_terminal_for_itself(capfd):
    assert list(Runner([HERE]).run([_job(0, "print('one')")])) == [(0, 0)]
    assert capfd.readouterr().err.splitlines() == ["[0]", "one"]


def test_each_job_has_its_own_environment_and_cores():
    core = min(os.sched_getaffinity(0))
    code = (
        "import os; raise SystemExit(int(os.environ['PART']) + 10 * len(os.sched_getaffinity(0)))"
    )
    there = [Place({"PART": part}, frozenset({core})) for part in ("1", "2")]
    # The first job holds its place until the second has the other one.
    slow = f"import time; time.sleep(0.5); {code}"
    assert sorted(code for _, code in Runner(there).run([_job(0, slow), _job(1, slow)])) == [11, 12]
    assert len(os.sched_getaffinity(0)) >= 1


PROGRAM = """
import sys
from noah_jax.compare.places import Place
from noah_jax.compare.running import Job, Runner
from noah_jax.interrupts import listening

TRAINING = '''
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(60)
'''
jobs = [Job(n, f"run{n}", [sys.executable, "-c", TRAINING], f"[{n}]") for n in range(4)]
with listening():
    print(sorted(Runner([Place({}, None), Place({}, None)]).run(jobs)))
"""


def test_a_signal_stops_all_jobs_in_order_and_starts_no_more():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None and process.stdout is not None
        lines: list[str] = []
        while sum("ready" in line for line in lines) < 2:
            lines.append(process.stderr.readline())
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == f"{[(number, 75) for number in range(4)]}\n"
        lines += process.stderr.readlines()
    assert sorted(lines) == ["[0]\n", "[1]\n", "run0 | ready\n", "run1 | ready\n"]


def test_a_caller_that_gives_up_leaves_no_job_behind():
    runner = Runner([HERE, HERE])
    jobs = runner.run([_job(0, "pass"), _job(1, "import time; time.sleep(60)")])
    assert next(jobs) == (0, 0)
    begin = time.monotonic()
    jobs.close()
    assert time.monotonic() - begin < 30 and not runner._running


def test_gpus_are_shared_evenly():
    assert share_devices("gpu", 4, 2, {}) == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]
    named = share_devices("gpu", 2, 2, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"})
    assert named == [{"CUDA_VISIBLE_DEVICES": "GPU-a"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}]
    with pytest.raises(UsageError, match=r"--parallel 3 needs as many GPUs, and .* shows 2; .* 2"):
        share_devices("gpu", 2, 3, {})


def test_each_training_has_one_tpu_chip():
    one, other = share_devices("tpu", 4, 2, {"TPU_VISIBLE_CHIPS": "2,3"})
    assert (one["TPU_VISIBLE_CHIPS"], other["TPU_VISIBLE_CHIPS"]) == ("2", "3")
    assert one["TPU_PROCESS_BOUNDS"] == one["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,1,1"
    with pytest.raises(UsageError, match="--parallel 8 needs as many TPU chips"):
        share_devices("tpu", 4, 8, {})


@pytest.mark.parametrize(
    ("parallel", "shares"),
    [
        (2, [{0, 1, 2}, {3, 4, 5, 6}]),
        (7, [{i} for i in range(7)]),
        (8, [{i % 7} for i in range(8)]),
    ],
)
def test_processor_cores_are_shared(monkeypatch, parallel, shares):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    assert share_cores(parallel) == shares


def test_the_machine_is_asked_for_its_devices(monkeypatch):
    assert find_places(1) == [HERE]
    assert [place.environ for place in find_places(2)] == [{}, {}]  # tests run on the CPU
    answer = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: no such platform\n")
    monkeypatch.setattr(places.subprocess, "run", lambda *a, **k: answer)
    with pytest.raises(
        UsageError, match=r"does not find this machine's devices: .*no such platform"
    ):
        find_places(2)
