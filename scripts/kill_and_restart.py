#!/usr/bin/env python3
"""Shows that a run of several processes survives being killed, bit for bit.

    python scripts/kill_and_restart.py [--processes 4] [--kills 10] [--seed 0]

Trains the quickstart's model (with mixup, a moving average and grouped BatchNorm) on several local
processes, once undisturbed and once with one process killed at a random moment, again and again.
Each time the others must end by themselves, and the same command must go on. Exits with 0 if the
parameters, statistics and averages of both runs are equal to the last bit.
"""

import argparse
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 120
SETTINGS = {
    "epochs": STEPS * 32 / 10_000,
    "optim.warmup_epochs": 0.1,
    "mixup": 0.8,
    "mix_group": 8,
    "ema_decay": 0.99,
    "log_every": 10,
    "eval_every": STEPS,
    "checkpoint_every": 5,
    "data.num_threads": 1,
}
LOGGED = "images/s"  # a line of the log
# JAX prints this when the processes have found one another. None is killed before that: the others
# would wait half an hour for it, since it could be a host that is still booting.
JOINED = "peer ranks"
START_SECONDS = 10  # from there to the first step, roughly
PATIENCE = 300  # seconds that the other processes may take to end after one was killed
COMPARE = """
import sys, jax, numpy as np, noah_jax
runs = [[noah_jax.load_model(path, ema=ema)[1:] for ema in (False, True)] for path in sys.argv[1:]]
leaves = [list(map(np.asarray, jax.tree.leaves(run))) for run in runs]
same = [a.tobytes() == b.tobytes() for a, b in zip(*leaves, strict=True)]
print(f"{sum(same)} of {len(same)} arrays are equal to the last bit")
sys.exit(not all(same))
"""


def start(workdir: pathlib.Path, count: int) -> list[subprocess.Popen]:
    """Starts the training program on `count` processes; appends their output to log files."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = []
    for index in range(count):
        command = [sys.executable, "-m", "noah_jax.train", f"--workdir={workdir}"]
        command += ["--config", str(ROOT / "configs" / "quickstart.py")]
        command += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
        command += [f"--config.compilation_cache={workdir.parent / 'compilation'}"]
        command += [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
        command += [f"--process_id={index}"]
        with log_file(workdir, index).open("a") as log:
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))
    return processes


def log_file(workdir: pathlib.Path, index: int) -> pathlib.Path:
    """The file with everything that a process of a run prints, in all its starts."""
    return workdir.with_name(f"{workdir.name}-{index}.log")


def said(workdir: pathlib.Path, words: str) -> int:
    """How often the first process has printed something."""
    return log_file(workdir, 0).read_text().count(words)


def wait_for(processes: list, workdir: pathlib.Path, words: str, before: int) -> None:
    """Waits until the first process prints something once more, or one ends."""
    while said(workdir, words) == before and all(p.poll() is None for p in processes):
        time.sleep(0.01)


def main() -> int:
    """Runs, kills, compares; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=4, help="local processes (4)")
    parser.add_argument("--kills", type=int, default=10, help="how often one is killed (10)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed for the moments and the processes that are killed"
    )
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # these programs run briefly
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kill_and_restart_"))
    undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
    print(f"{arguments.processes} processes, {STEPS} steps; logs are in {folder}", flush=True)

    processes = start(undisturbed, arguments.processes)
    wait_for(processes, undisturbed, LOGGED, 0)
    begin = time.monotonic()
    codes = [process.wait() for process in processes]
    training = time.monotonic() - begin
    print(f"undisturbed: codes {codes}, {training:.0f} s of training", flush=True)
    if any(codes):
        print(f"the training failed, see {log_file(undisturbed, 0)}")
        return 1

    chance = random.Random(arguments.seed)
    for kill in range(arguments.kills):
        before, joined = (said(disturbed, words) if kill else 0 for words in (LOGGED, JOINED))
        processes = start(disturbed, arguments.processes)
        if chance.random() < 0.25:  # while they restore and compile
            wait_for(processes, disturbed, JOINED, joined)
            moment = chance.uniform(0, START_SECONDS)
        else:  # while they train, but not so late that they finish before all kills
            wait_for(processes, disturbed, LOGGED, before)
            moment = chance.uniform(0, 0.8 * training / arguments.kills)
        time.sleep(moment)
        victim = chance.randrange(arguments.processes)
        processes[victim].kill()
        codes = end(processes)
        steps = [int(p.name) for p in (disturbed / "checkpoints").glob("*") if p.name.isdigit()]
        print(
            f"kill {kill + 1}: process {victim}; codes {codes}; saved up to step"
            f" {max(steps, default=0)}",
            flush=True,
        )
        if codes[victim] != -9 or 0 in codes or 1 in codes:
            print(f"the others should go on later, see {log_file(disturbed, 0)}")
            return 1
    codes = [process.wait() for process in start(disturbed, arguments.processes)]
    if any(codes):
        print(f"the last start failed with the codes {codes}, see {log_file(disturbed, 0)}")
        return 1
    return subprocess.call([sys.executable, "-c", COMPARE, str(undisturbed), str(disturbed)])


def end(processes: list[subprocess.Popen]) -> list[int]:
    """Waits for the exit codes; raises if a process has not ended after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    try:
        return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in processes]
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
