"""Prepares ImageNet, COCO or other images for training: a TFDS dataset in ArrayRecord format.

    python -m noah_jax.prepare --tar ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar
    python -m noah_jax.prepare --folder PATH               (PATH/train/n01440764/*.JPEG)
    python -m noah_jax.prepare --folder PATH --name my_images        (any class folders)
    python -m noah_jax.prepare --coco PATH     (PATH/annotations/instances_train2017.json and so on)
    python -m noah_jax.prepare --voc PATH/VOCdevkit/VOC2007
    python -m noah_jax.prepare --from-tfrecord DIR/imagenet2012/5.1.0 --data-dir NEW

Each needs about as much free space as the images take, no TensorFlow and little memory: the tar
files are never unpacked. If the program is stopped or killed, the same command goes on where it
was. Then train with `--config.dataset=imagenet2012` (or the name), and with `--config.data.dir`
if --data-dir was given.

The validation images' labels come from the table in the tensorflow_datasets package; ImageNet's
development kit is not needed. Classes and counts are checked: 1,281,167 training and 50,000
validation images in 1,000 classes. Images are stored as they are, byte for byte, including the
few that are CMYK or PNG (decoding converts them) and any that are corrupt (training names them).

COCO becomes the dataset coco2017 (or the year of its annotations), with the splits train and val:
the labels of an image are the categories that have an annotation in it, and images without any are
left out. PASCAL VOC becomes voc2007, with the splits trainval and test; a class of which an image
shows only difficult objects is ignored for that image. --name gives another name.

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
    source.add_argument(
        "--coco",
        metavar="PATH",
        type=local_path,
        help="a folder with COCO's annotations/ and the folders of its images",
    )
    source.add_argument(
        "--voc",
        metavar="PATH",
        type=local_path,
        help="the folder of a year of PASCAL VOC, such as VOCdevkit/VOC2007",
    )
    parser.add_argument("--year", help="with --coco: the year, if the folder holds several")
    parser.add_argument(
        "--name",
        help="the dataset's name; by default imagenet2012 with --folder, and coco or voc with the"
        " year",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=local_path,
        help="the folder for datasets; by default TFDS's own, ~/tensorflow_datasets",
    )
    return parser


def _prepare(parsed: argparse.Namespace) -> int:
    if parsed.name and not (parsed.folder or parsed.coco or parsed.voc):
        raise UsageError("--name goes with --folder, --coco or --voc; --help tells more")
    if parsed.year and not parsed.coco:
        raise UsageError("--year goes with --coco; --help tells more")
    from noah_jax.prepare.program import prepare_dataset

    prepare_dataset(
        tar=parsed.tar,
        folder=parsed.folder,
        from_tfrecord=parsed.from_tfrecord,
        coco=parsed.coco,
        voc=parsed.voc,
        year=parsed.year,
        name=parsed.name,
        data_dir=parsed.data_dir,
    )
    return 0


main = program(_prepare, _parser)

if __name__ == "__main__":
    sys.exit(main())
