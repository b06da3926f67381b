"""Trains a model on images; started again on the same folder it goes on exactly where it stopped.

    python -m noah_jax.train --config quickstart.py --workdir runs/quickstart
    python -m noah_jax.train --config resnet.py:noah_resnet50 --workdir gs://bucket/run \\
        --config.model.dtype=bfloat16 --config.data.dir=/data
    python -m noah_jax.train --config finetune.py --config.dataset=folder:photos \\
        --config.init_from=runs/converted --workdir runs/photos

Every key of the configuration is documented in noah_jax/config.py; what a key says is an error if
it does not fit. A folder that holds a finished run is left as it is. --workdir, class folders and
the folder of prepared datasets may be `gs://` paths.

On many hosts the same command runs on each. A TPU pod, SLURM, Open MPI and Kubernetes are
recognised; elsewhere --coordinator, --num_processes and --process_id say who is who.

The exit code is 0 if the run is finished, 75 if the same command would go on (it was stopped, or
another process is gone), 1 if it would fail again. An error is one line; NOAH_TRACEBACK=1 in the
environment shows where it came from.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.paths import local_path


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.train", __doc__)
    parser.add_config(required=True)
    add = parser.add_argument
    add(
        "--workdir",
        metavar="DIR",
        type=local_path,
        required=True,
        help="the run's folder, local or gs://",
    )
    add(
        "--coordinator",
        metavar="HOST:PORT",
        default="",
        help="where the process with index 0 listens, if JAX cannot find it",
    )
    add(
        "--num_processes",
        metavar="N",
        type=int,
        default=0,
        help="the number of processes of the run; 1 looks for no others",
    )
    add("--process_id", metavar="I", type=int, default=-1, help="the index of this process")
    add("--profile", action="store_true", help="write a profile of five steps to DIR/profile")
    return parser


def _train(arguments: argparse.Namespace) -> int:
    from noah_jax.train.program import run_training  # It takes seconds to import.

    return run_training(arguments)


main = program(_train, _parser)

if __name__ == "__main__":
    sys.exit(main())
