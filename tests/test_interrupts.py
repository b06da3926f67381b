"""Ctrl-C and SIGTERM: one line at once, no traceback, nothing half-written, 130 or 75."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT

# What a program is doing when the signal comes. The last one is in C, as when XLA compiles.
BUSY = {
    "import": "import this_module_takes_long",
    "write": "with whole(sys.argv[1]) as folder:\n  folder.mkdir(); (folder/'a').write_text('a')\n"
    "  print('ready', flush=True); time.sleep(60)",
    "finally": "try:\n  print('ready', flush=True); time.sleep(60)\nexcept BaseException as e:\n"
    "  raise RuntimeError from e",
    "compile": "print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**9)",
}
PROGRAM = """
import hashlib, sys, time
from noah_jax.cli import Parser, run
from noah_jax.files import whole
def program(parsed):
    exec({code!r})
    return 0
sys.exit(run(program, Parser("test"), []))
"""


def _start(arguments, cwd=ROOT, **environment):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("busy", BUSY)
def test_a_program_ends_at_once_wherever_it_is(busy, number, tmp_path):
    (tmp_path / "this_module_takes_long.py").write_text(
        "import time\nprint('ready', flush=True)\n"
        "try:\n  time.sleep(60)\nexcept BaseException:\n  raise ImportError\n"
    )
    process = _start(
        ["-c", PROGRAM.format(code=BUSY[busy]), str(tmp_path / "folder")],
        PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}",
    )
    assert process.stdout.readline() == "ready\n"
    begin = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - begin < 5
    name, code = ("Ctrl-C", 130) if number == signal.SIGINT else ("SIGTERM", 75)
    assert (process.returncode, output, errors) == (code, "", f"stopped by {name}\n")
    left = {path.name for path in tmp_path.iterdir()} - {"this_module_takes_long.py", "__pycache__"}
    assert not left


TRAIN = ("--config", "quickstart.py", "--config.compilation_cache=", "--config.epochs=50")


def _train(folder, delay, number):
    """Starts a training, sends a signal and returns the exit code and what it wrote."""
    process = _start(["-m", "noah_jax.train", *TRAIN, f"--workdir={folder}"])
    time.sleep(delay)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def _is_clean(ended, number):
    code, output, errors = ended
    lines = errors.splitlines()
    stopping = "stopping after this step, which is saved; a second Ctrl-C stops at once"
    if lines == [stopping]:
        return code == 75 and "which is saved; the same command goes on" in output
    named = {signal.SIGINT: (130, "Ctrl-C"), signal.SIGTERM: (75, "SIGTERM")}
    advice = "the same command goes on from the last saved step, if there is one"
    said = [[f"stopped by {named[number][1]}"], [f"stopped by {named[number][1]}; {advice}"]]
    return code == named[number][0] and lines in said


def test_training_stops_while_it_gets_ready(tmp_path):
    ended = _train(tmp_path / "run", 5, signal.SIGINT)
    assert _is_clean(ended, signal.SIGINT), ended


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.3, 1, 2, 4, 6, 8, 10, 13, 16, 20, 25])
def test_training_stops_at_any_time(tmp_path, delay, number):
    ended = _train(tmp_path / "run", delay, number)
    assert _is_clean(ended, number), ended


def test_the_second_ctrl_c_stops_the_loop_at_once(tmp_path):
    """Training asks to be told of the first one, because it saves first."""
    code = "with interrupts.stopping_in_order(lambda n: print('told', flush=True)):\n"
    code += "  print('ready', flush=True); time.sleep(60)"
    process = _start(["-c", PROGRAM.format(code=f"from noah_jax import interrupts\n{code}")])
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "told\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (130, "", "stopped by Ctrl-C\n")
