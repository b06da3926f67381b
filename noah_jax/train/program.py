"""Runs the training program on a parsed command line; turns its endings into exit codes."""

import argparse

from absl import logging
from ml_collections import ConfigDict

from noah_jax import console, distributed
from noah_jax.cli import load_config
from noah_jax.console import say
from noah_jax.errors import JoinError, NoahError
from noah_jax.runs.run_dir import CHECKPOINTS, RESULTS_FILE
from noah_jax.train.loop import train
from noah_jax.train.stop_request import Stopped
from noah_jax.train.watchdog import RESTARTABLE, Watchdog


def run_training(arguments: argparse.Namespace) -> int:
    """Trains what the command line says.

    Args:
      arguments: What the parser in `noah_jax.train.__main__` returns.

    Returns:
      The exit code: 0 if the run is finished, `RESTARTABLE` if the same command would go on.

    Raises:
      NoahError: If the same command would fail again.
    """
    logging.set_verbosity(logging.ERROR)  # Hides the libraries' notes; ours are printed.
    config = load_config(arguments)
    try:
        distributed.start(arguments.coordinator, arguments.num_processes, arguments.process_id)
        with Watchdog(
            config.watchdog_seconds, orderly=(Stopped,), expected=(NoahError,)
        ) as watchdog:
            train(config, arguments.workdir, alive=watchdog.progress, profile=arguments.profile)
    except Stopped as stopped:
        say(stopped)
        return RESTARTABLE
    except JoinError as error:
        console.fail(error)
        return RESTARTABLE
    say(_closing_words(config, arguments.workdir))
    return 0


def _closing_words(config: ConfigDict, workdir: str) -> str:
    lines = [
        f"results      {workdir}/{RESULTS_FILE}",
        f"metrics      {workdir}/metrics.jsonl, and: tensorboard --logdir {workdir}",
        f"weights      {workdir}/{CHECKPOINTS}; in Python: noah_jax.load_model({workdir!r})",
    ]
    lines += [f"try next     {command}" for command in config.try_next]
    return "\n".join(lines)
