"""Runs the training program on a parsed command line; turns its endings into exit codes."""

import argparse
import math
import shlex
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from noah_jax import console, distributed
from noah_jax.cli import as_typed, load_config
from noah_jax.console import say
from noah_jax.errors import JoinError, NoahError, UnreachableError
from noah_jax.heads.registry import HEADS
from noah_jax.inference.loading import read_description
from noah_jax.interrupts import advising
from noah_jax.runs.run_dir import CHECKPOINTS, RESULTS_FILE
from noah_jax.train.examples import EXAMPLES
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
        with (
            advising("the same command goes on from the last saved step, if there is one"),
            Watchdog(
                config.watchdog_seconds, orderly=(Stopped,), expected=(NoahError,)
            ) as watchdog,
        ):
            results = train(
                config, arguments.workdir, alive=watchdog.progress, profile=arguments.profile
            )
    except Stopped as stopped:
        say(stopped)
        return RESTARTABLE
    except (JoinError, UnreachableError) as error:
        console.fail(error)
        return RESTARTABLE
    say(closing_words(arguments.workdir, results))
    return 0


def closing_words(workdir: str, results: Mapping[str, Any]) -> str:
    """Says where the results of a run are, and which commands go on with it.

    Args:
      workdir: The run's folder.
      results: What `train` returns.
    """
    run = shlex.quote(workdir)
    average = results.get("ema_loss", math.inf) < results["loss"]
    ema = " --ema" if average else ""
    load = f"noah_jax.load_model({workdir!r}{', ema=True' if average else ''})"
    commands = [f"evaluate --checkpoint {run}{ema} --report {_inside(workdir, 'report')}"]
    if (epath.Path(workdir) / EXAMPLES).exists():
        examples = _inside(workdir, EXAMPLES)
        commands.append(f"predict {examples} --checkpoint {run}{ema}")
        head = read_description(epath.Path(workdir))["arguments"]["head"]
        if head in HEADS and HEADS[head].draws:
            output = _inside(workdir, "explanation")
            commands.append(f"explain --checkpoint {run}{ema} --image {examples} --output {output}")
    return "\n".join(
        [
            f"results      {workdir}/{RESULTS_FILE}",
            f"metrics      {workdir}/metrics.jsonl, and: tensorboard --logdir {run}",
            f"weights      {workdir}/{CHECKPOINTS}; in Python: {load}",
            *(f"try next     {as_typed(f'python -m noah_jax.{command}')}" for command in commands),
        ]
    )


def _inside(workdir: str, name: str) -> str:
    return shlex.quote(f"{workdir.rstrip('/')}/{name}")
