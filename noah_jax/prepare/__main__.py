"""Prepares ImageNet, or other images, for training: a TFDS dataset in ArrayRecord format.

    python -m noah_jax.prepare --tar ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar
    python -m noah_jax.prepare --folder PATH               (PATH/train/n01440764/*.JPEG)
    python -m noah_jax.prepare --folder PATH --name my_images        (any class folders)
    python -m noah_jax.prepare --from-tfrecord DIR/imagenet2012/5.1.0 --data-dir NEW

Each needs about as much free space as the images take, no TensorFlow and little memory: the tar
files are never unpacked. If the program is stopped or killed, the same command goes on where it
was. Then train with `--config.dataset=imagenet2012` (or the name), and with `--config.data.dir`
if --data-dir was given.

The validation images' labels come from the table in the tensorflow_datasets package; ImageNet's
development kit is not needed. Classes and counts are checked: 1,281,167 training and 50,000
validation images in 1,000 classes. Images are stored as they are, byte for byte, including the
few that are CMYK or PNG (decoding converts them) and any that are corrupt (training names them).

`python scripts/prepare_imagenet.py` takes the same arguments.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.errors import UsageError
from noah_jax.paths import local_path


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.prepare", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--tar",
        nargs=2,
        type=local_path,
        metavar=("TRAIN_TAR", "VAL_TAR"),
        help="ImageNet's two tar files",
    )
    source.add_argument(
        "--folder", metavar="PATH", type=local_path, help="a folder with class folders"
    )
    source.add_argument(
        "--from-tfrecord",
        metavar="DIR",
        type=local_path,
        help="a dataset that TFDS prepared in TFRecord format",
    )
    parser.add_argument("--name", help="with --folder: the dataset's name; by default imagenet2012")
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=local_path,
        help="the folder for datasets; by default TFDS's own, ~/tensorflow_datasets",
    )
    return parser


def _prepare(parsed: argparse.Namespace) -> int:
    if parsed.name and not parsed.folder:
        raise UsageError("--name goes with --folder; --help tells more")
    from noah_jax.prepare.program import prepare_dataset

    prepare_dataset(
        tar=parsed.tar,
        folder=parsed.folder,
        from_tfrecord=parsed.from_tfrecord,
        name=parsed.name,
        data_dir=parsed.data_dir,
    )
    return 0


main = program(_prepare, _parser)

if __name__ == "__main__":
    sys.exit(main())
