"""Kills conversions; a program of its own, because it must not have threads when it forks.

    python killed.py FOLDER

It reads lines `SOURCE WHEN`, converts SOURCE into FOLDER with --overwrite in a new process for
each line, and prints `killed` or `finished`. WHEN is one of

    3       kill before the third change of a name in the file system
    swap3   likewise, but counts only the names in FOLDER's parent
    0.3     kill after so many seconds
    never
"""

import importlib
import os
import signal
import sys
import time
import traceback

from noah_jax.convert.__main__ import main as convert

importlib.import_module("noah_jax.convert.program")  # before any fork

_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")


def _kill_at(count: int, parent: str | None) -> None:
    """Kills this process at the count-th change in the file system, or in a parent folder."""
    left = count

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        if parent is not None:
            counts = event == "os.rename" and os.path.dirname(args[0]) == parent
        elif event == "open":
            counts = bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        else:
            counts = event in _CHANGES
        left -= counts
        if counts and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _convert(source: str, folder: str, when: str) -> bool:
    """Converts in a new process; returns whether it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if when.startswith("swap"):
                _kill_at(int(when.removeprefix("swap")), os.path.dirname(folder))
            elif when.isdigit():
                _kill_at(int(when), None)
            code = convert([source, folder, "--overwrite"])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if "." in when:
        time.sleep(float(when))
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    killed = os.WIFSIGNALED(status)
    assert killed or status == 0, status
    return killed


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        source, when = line.split()
        killed = _convert(source, sys.argv[1], when)
        print("killed" if killed else "finished", file=answers, flush=True)


if __name__ == "__main__":
    main()
