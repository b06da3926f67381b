"""Checks models against numbers that PyTorch computed.

    python -m noah_jax.parity --checkpoint SRC --reference REF.npz

compares a checkpoint (a converted or trained folder, a PyTorch file, hf://USER/NAME) with the
logits of your own PyTorch model, which `scripts/dump_torch_reference.py` writes.

The models, their training and the head against golden vectors of the original code:

    python -m noah_jax.parity --golden DIR                       every model
    python -m noah_jax.parity --golden DIR --models '*resnet*'   some models
    python -m noah_jax.parity --golden DIR --train               the training cases
    python -m noah_jax.parity --golden DIR --head                the head alone

DIR holds `golden.json`; `models.json.gz` and `logits.npz` for the models; `train.json` and
`train.npz` for the training cases; `head.json` and `head.npz` for the head.

A model agrees if its float32 logits are no further from PyTorch's float64 logits than 5 times
PyTorch's own float32 logits are, plus 2e-6, all divided by the standard deviation of the logits.
If the file of a checkpoint has no float32 logits, the limit is 1e-4.

A training case agrees if every quantity is within 10 times PyTorch's own float32 deviation plus
1e-4, and the first loss within 1e-5. If rounding at the edge of a ReLU exceeds that, the run is
repeated in float64 and must be within 1e-6.

A head case agrees if logits and gradients are within 1e-5 of the largest value.

The exit code is 0 if everything agrees, and 1 if anything disagrees or after an error.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.errors import UsageError
from noah_jax.inference.flags import CHECKPOINT_HELP
from noah_jax.paths import local_path


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.parity", __doc__)
    add = parser.add_argument
    add("--checkpoint", metavar="SRC", type=local_path, help=f"what to check: {CHECKPOINT_HELP}")
    add("--reference", metavar="NPZ", type=local_path, help="PyTorch's logits for the checkpoint")
    add("--golden", metavar="DIR", type=local_path, help="the folder of golden vectors")
    add(
        "--models",
        metavar="PATTERN",
        help="which models or training cases of --golden to check, as a shell-style pattern;"
        " by default all",
    )
    add(
        "--train",
        action="store_true",
        help="check the training cases of --golden, not the logits of the models",
    )
    add(
        "--head",
        action="store_true",
        help="check the head cases of --golden; the models only if --models is given too",
    )
    return parser


def _main(args: argparse.Namespace) -> int:
    checkpoint, reference, golden = args.checkpoint, args.reference, args.golden
    if (checkpoint is None) != (reference is None) or (checkpoint is not None and golden):
        raise UsageError("--checkpoint and --reference go together, without --golden")
    if checkpoint is None and golden is None:
        raise UsageError("give --golden, or --checkpoint and --reference; --help tells more")
    from noah_jax.parity.program import check_golden, check_reference

    if checkpoint is not None:
        agrees = check_reference(checkpoint, reference)
    else:
        agrees = check_golden(golden, args.models, train=args.train, head=args.head)
    return 0 if agrees else 1


main = program(_main, _parser)

if __name__ == "__main__":
    sys.exit(main())
