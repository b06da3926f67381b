"""Checks models against numbers that PyTorch computed.

    python -m noah_jax.parity --checkpoint SRC --reference REF.npz

compares a checkpoint (a converted or trained folder, or a PyTorch file) with the answers of
your own PyTorch model, which `scripts/dump_torch_reference.py` writes: the float32 logits agree
when they are no further from PyTorch's float64 ones than 5 times PyTorch's own float32 logits
are, plus 2e-6 (without those: 1e-4), over the logits' standard deviation.

The models, their training and the head against vectors of the original code:

    python -m noah_jax.parity --golden DIR                       every model
    python -m noah_jax.parity --golden DIR --models '*resnet*'   some
    python -m noah_jax.parity --golden DIR --train               the training cases
    python -m noah_jax.parity --golden DIR --head                the head alone

DIR holds `golden.json`, `models.json.gz` and `logits.npz`; `train.json` and `train.npz`;
`head.json` and `head.npz`.

A model agrees when its float32 logits are no further from the float64 ones than 5 times
PyTorch's own float32 logits are, plus 2e-6 (all over the logits' standard deviation). A
training case agrees when every quantity is within 10 times PyTorch's own float32 deviation
plus 1e-4, and the first loss within 1e-5; where rounding at the edge of a ReLU exceeds that,
the run is repeated in float64 and must be within 1e-6. A head case agrees within 1e-5 of its
largest value, gradients included. Exit code 1 if any disagrees.
"""

import argparse
import functools
import sys
from collections.abc import Iterator

from noah_jax.cli import Parser, run


def main(argv: list[str] | None = None) -> int:
    """Runs the checks the arguments ask for; returns the exit code."""
    parser = Parser("python -m noah_jax.parity", __doc__)
    parser.add_argument("--checkpoint", metavar="SRC", help="a folder or a PyTorch file")
    parser.add_argument("--reference", metavar="NPZ", help="what PyTorch answers with it")
    parser.add_argument("--golden", metavar="DIR", help="the golden vectors")
    parser.add_argument(
        "--models", metavar="PATTERN", help="which models or training cases, shell-style"
    )
    parser.add_argument(
        "--train", action="store_true", help="the training cases in place of the logits"
    )
    parser.add_argument(
        "--head", action="store_true", help="the head alone; models only if --models is given"
    )
    return run(functools.partial(_check, parser), parser, argv)


def _check(parser: Parser, args: argparse.Namespace) -> int:
    """Runs the checks asked for; returns the exit code."""
    if args.checkpoint is None and args.reference is None:
        if args.golden is None:
            parser.error("--golden, or --checkpoint and --reference, must be given")
    elif None in (args.checkpoint, args.reference) or args.golden is not None:
        parser.error("--checkpoint and --reference go together, without --golden")
    import jax

    from noah_jax.parity.checkpoint import check_checkpoint

    # Accelerators would multiply float32 in fewer bits.
    with jax.default_matmul_precision("float32"):
        if args.checkpoint is not None:
            return 0 if check_checkpoint(args.checkpoint, args.reference) else 1
        results = list(_golden(args))
    failed = results.count(False)
    print(f"{len(results) - failed} of {len(results)} agree")
    return 1 if failed else 0


def _golden(args: argparse.Namespace) -> Iterator[bool]:
    """Whether each of the golden cases asked for agrees."""
    from noah_jax.parity.head import check_head
    from noah_jax.parity.models import check_models
    from noah_jax.parity.training import check_training

    if args.head:
        yield from check_head(args.golden)
    if args.train:
        yield from check_training(args.golden, args.models or "*")
    elif args.models is not None or not args.head:
        yield from check_models(args.golden, args.models or "*")


if __name__ == "__main__":
    sys.exit(main())
