"""Tests the watchdog of a single process; for several see test_multiprocess.py."""

import subprocess
import sys
import time

import pytest

from noah_jax.train.watchdog import Watchdog
from tests.helpers import ROOT

STUCK = """
import time
from noah_jax.train.watchdog import Watchdog

def wait_for_data():
    time.sleep(20)

with Watchdog(1.0) as watchdog:
    watchdog.progress(7)
    wait_for_data()
"""


def test_a_stuck_process_ends_as_restartable_with_its_stacks():
    ran = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 75
    assert ran.stderr.splitlines()[0] == "error: no progress for 1 s after step 7"
    assert "in wait_for_data" in ran.stderr


def test_it_ends_where_its_log_is_on_a_full_disk():
    with open("/dev/full", "w") as full:
        ran = subprocess.run([sys.executable, "-c", STUCK], cwd=ROOT, stderr=full)
    assert ran.returncode == 75


def test_progress_and_waiting_for_the_first_step_are_no_harm():
    with Watchdog(0.4) as watchdog:
        time.sleep(0.8)
        for step in range(8):
            watchdog.progress(step)
            time.sleep(0.1)


def test_a_process_alone_leaves_by_its_exception():
    with pytest.raises(KeyError), Watchdog(1.0):
        raise KeyError
    with pytest.raises(ValueError, match="watchdog_seconds must be above 0"):
        Watchdog(0.0)
