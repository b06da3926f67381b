"""The training program.

    python -m noah_jax.train --config configs/quickstart.py --workdir DIR [--config.KEY=VALUE]

Started again on the same DIR it goes on from the last checkpoint, exactly; a finished DIR
says so. DIR and class folders may be `gs://` paths. An error is one line; NOAH_TRACEBACK=1 in
the environment shows where it came from. --profile writes a profile of five steps to DIR/profile.

On many hosts the same command runs on each: a TPU pod, SLURM, Open MPI and Kubernetes are found,
elsewhere --coordinator=HOST:PORT --num_processes=N --process_id=I say who is who. The exit code
is 0 when finished, 75 when the same command would go on, 1 when it would fail again.
"""

import sys

from noah_jax.cli import show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds
    from noah_jax.train.program import main

    sys.exit(main(sys.argv))
