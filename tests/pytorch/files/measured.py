"""Measures a conversion's time and memory in a process of its own; the arguments are SRC and DST.

Prints, as JSON, the seconds after the imports and the largest anonymous memory in bytes, that of
the imports included.
"""

import json
import pathlib
import sys
import threading
import time

from noah_jax.convert.program import convert


def _anonymous_bytes() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def main() -> None:
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    convert(sys.argv[1], sys.argv[2])
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "bytes": peak}))


if __name__ == "__main__":
    main()
