"""Prepares a dataset and is killed, again and again.

    python killed_preparation.py CLASS_FOLDERS DATA_DIR

prepares the folders as `my_images`, each time in a new process that is killed at a later opening
or change of a file. Every fifth preparation is then finished and kept as `DATA_DIR/resumedN`. The
last preparation is killed every few files until it is complete, `DATA_DIR/my_images/1.0.0`. Prints
how many processes were killed at first, and how many in the last preparation.

This is a program, not a test, because it forks and must have no threads then.
"""

import os
import pathlib
import shutil
import signal
import sys
import traceback

from noah_jax.data import prepare

_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove")


def main(folders: str, data_dir: str) -> None:
    prepare.IMAGES_PER_SHARD = 2
    info, splits = prepare.plan_folders(folders, "my_images")
    target = pathlib.Path(data_dir) / info.full_name

    def killed(at: int | None) -> bool:
        """Prepares in a new process; returns whether it was killed at that event."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if at is not None:
                    _kill_at(at)
                prepare.prepare(info, splits, data_dir)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL), status
        # The dataset is complete or not there.
        assert target.exists() or status != 0
        assert not target.exists() or (target / "dataset_info.json").exists()
        return status != 0

    once = 0
    while killed(once + 1):
        once += 1
        if once % 5 == 0:
            assert not killed(None)
            target.rename(pathlib.Path(data_dir) / f"resumed{once}")
        else:
            shutil.rmtree(target.parent, ignore_errors=True)
    shutil.rmtree(target)
    often = 0
    while killed(14):
        often += 1
    print(once, often)


def _kill_at(count: int) -> None:
    left = count

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        counts = event in _EVENTS
        left -= counts
        if counts and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main(*sys.argv[1:])
