"""What `python -m noah_jax.train` does with its command line."""

import os

from absl import logging
from ml_collections import ConfigDict

from noah_jax import console, distributed
from noah_jax.config import parse_command_line
from noah_jax.console import say
from noah_jax.errors import JoinError, NoahError
from noah_jax.runs.run_dir import CHECKPOINTS, RESULTS_FILE
from noah_jax.train.loop import Stopped, train
from noah_jax.train.watchdog import RESTARTABLE, Watchdog


def main(argv: list[str]) -> int:
    """Trains what the command line says; returns the exit code."""
    logging.set_verbosity(logging.ERROR)  # the libraries' own notes; ours are printed
    try:
        config, given = parse_command_line(
            argv, workdir=None, coordinator="", num_processes=0, process_id=-1, profile=False
        )
        distributed.start(given["coordinator"], given["num_processes"], given["process_id"])
        with Watchdog(
            config.watchdog_seconds, orderly=(Stopped,), expected=(NoahError,)
        ) as watchdog:
            train(config, given["workdir"], alive=watchdog.progress, profile=given["profile"])
    except Stopped as stopped:
        say(stopped)
        return RESTARTABLE
    except JoinError as error:
        console.fail(error)
        return RESTARTABLE
    except NoahError as error:
        if "NOAH_TRACEBACK" in os.environ:
            raise
        return console.fail(error)
    say(_closing_words(config, given["workdir"]))
    return 0


def _closing_words(config: ConfigDict, workdir: str) -> str:
    lines = [
        f"results      {workdir}/{RESULTS_FILE}",
        f"metrics      {workdir}/metrics.jsonl, and: tensorboard --logdir {workdir}",
        f"weights      {workdir}/{CHECKPOINTS}; in Python: noah_jax.load_model({workdir!r})",
    ]
    lines += [f"try next     {command}" for command in config.try_next]
    return "\n".join(lines)
