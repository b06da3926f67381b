"""Prepares ImageNet, or other images, for training: a TFDS set in ArrayRecord format.

    python scripts/prepare_imagenet.py --tar ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar
    python scripts/prepare_imagenet.py --folder PATH               (PATH/train/n01440764/*.JPEG)
    python scripts/prepare_imagenet.py --folder PATH --name my_images        (any class folders)
    python scripts/prepare_imagenet.py --from-tfrecord DIR/imagenet2012/5.1.0 --data-dir NEW

All need about as much free space as the images take, no TensorFlow and little memory: the tar
files are never unpacked. Stopped or killed, the same command goes on where it was. Then train
with `--config.dataset=imagenet2012` (or the name) and, if given here, `--config.data.dir`.

The validation images' labels come from the table in the tensorflow_datasets package; ImageNet's
development kit is not needed. Classes and counts are checked: 1,281,167 training and 50,000
validation images in 1,000 classes. Images are stored as they are, byte for byte, also the few
that are CMYK or PNG (decoding handles them) and any that are damaged (training names them).
"""

import argparse
import functools
import sys

from noah_jax.cli import Parser, run
from noah_jax.console import fail


def main() -> int:
    parser = Parser("python scripts/prepare_imagenet.py", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tar", nargs=2, metavar=("TRAIN_TAR", "VAL_TAR"))
    source.add_argument("--folder", metavar="PATH", help="class folders")
    source.add_argument("--from-tfrecord", metavar="DIR", help="a set that TFDS prepared")
    parser.add_argument("--name", help="of a set of class folders; by default imagenet2012")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="by default TFDS's own, ~/tensorflow_datasets"
    )
    return run(functools.partial(_prepare, parser), parser, None)


def _prepare(parser: Parser, args: argparse.Namespace) -> int:
    if args.name and not args.folder:
        parser.error("--name goes with --folder")
    import tensorflow_datasets as tfds

    from noah_jax.data.imagenet import NAME, imagenet_facts, plan_imagenet_folders, plan_tars
    from noah_jax.data.prepare import plan_folders, prepare
    from noah_jax.data.tfrecord import plan_conversion

    try:
        if args.tar:
            info, splits = plan_tars(*args.tar, imagenet_facts())
        elif args.from_tfrecord:
            info, splits = plan_conversion(args.from_tfrecord)
        elif args.name in (None, NAME):
            info, splits = plan_imagenet_folders(args.folder, imagenet_facts())
        else:
            info, splits = plan_folders(args.folder, args.name)
        prepare(info, splits, args.data_dir or str(tfds.core.constants.DATA_DIR))
    except KeyboardInterrupt:
        return fail("stopped; the same command goes on from here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
