"""Prepares ImageNet, COCO or other images for training: a TFDS dataset in ArrayRecord format.

    python -m noah_jax.prepare --tar ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar
    python -m noah_jax.prepare --folder PATH               (PATH/train/n01440764/*.JPEG)
    python -m noah_jax.prepare --folder PATH --name my_images        (any class folders)
    python -m noah_jax.prepare --coco PATH     (PATH/annotations/instances_train2017.json and so on)
    python -m noah_jax.prepare --voc PATH/VOCdevkit/VOC2007
    python -m noah_jax.prepare --from-tfrecord DIR/imagenet2012/5.1.0 --data-dir NEW
    python -m noah_jax.prepare --from-prepared DIR/imagenet2012/5.1.0 --max-side 400

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

With --max-side 400, training images whose longer side has more than 400 pixels are shrunk to that
and stored as JPEG of --quality, colours at half the resolution; the others keep their bytes. Such a
set takes less space and trains faster. It has a name of its own, such as imagenet2012_400, and the
same labels, order and file names. The evaluation images stay as they are. --raw stores pixels,
which need no decoding but several times the space. What is saved is first estimated from a sample;
--dry-run ends there.

`python scripts/prepare_imagenet.py` takes the same arguments.
"""

import argparse
import sys

from noah_jax.cli import Parser, positive, program
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
    source.add_argument(
        "--from-prepared",
        metavar="DIR",
        type=local_path,
        help="a dataset in ArrayRecord format, whose images are to be shrunk",
    )
    parser.add_argument("--year", help="with --coco: the year, if the folder holds several")
    parser.add_argument(
        "--name",
        help="the dataset's name; by default imagenet2012 with --folder, and coco or voc with the"
        " year; with --max-side or --raw, by default the original's name with what was done",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=local_path,
        help="the folder for datasets; by default TFDS's own, ~/tensorflow_datasets",
    )
    parser.add_argument(
        "--max-side",
        type=positive,
        metavar="PIXELS",
        help="shrink training images whose longer side is longer, such as 400 or 512",
    )
    parser.add_argument(
        "--quality",
        type=positive,
        metavar="1..100",
        help="with --max-side: quality of the JPEG files of shrunk images (95)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="store training images as raw pixels; for small sets"
    )
    parser.add_argument(
        "--shrink-splits",
        nargs="+",
        metavar="SPLIT",
        help="with --max-side or --raw: the splits to shrink; by default those that begin with"
        " train",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say how large the dataset will be, from a sample",
    )
    return parser


def _prepare(parsed: argparse.Namespace) -> int:
    shrinks = parsed.raw or parsed.max_side is not None
    if parsed.name and not (parsed.folder or parsed.coco or parsed.voc or shrinks):
        raise UsageError("--name goes with --folder, --coco or --voc; --help tells more")
    if parsed.year and not parsed.coco:
        raise UsageError("--year goes with --coco; --help tells more")
    if parsed.quality is not None and (parsed.raw or parsed.max_side is None):
        raise UsageError("--quality goes with --max-side and without --raw; --help tells more")
    if (parsed.from_prepared or parsed.shrink_splits) and not shrinks:
        option = "--from-prepared" if parsed.from_prepared else "--shrink-splits"
        raise UsageError(f"{option} goes with --max-side or --raw; --help tells more")
    from noah_jax.data.shrunk import QUALITY, Shrinking
    from noah_jax.prepare.program import prepare_dataset

    prepare_dataset(
        tar=parsed.tar,
        folder=parsed.folder,
        from_tfrecord=parsed.from_tfrecord,
        from_prepared=parsed.from_prepared,
        coco=parsed.coco,
        voc=parsed.voc,
        year=parsed.year,
        name=parsed.name,
        data_dir=parsed.data_dir,
        shrinking=Shrinking(parsed.max_side, parsed.quality or QUALITY, parsed.raw)
        if shrinks
        else None,
        shrink_splits=parsed.shrink_splits,
        dry_run=parsed.dry_run,
    )
    return 0


main = program(_prepare, _parser)

if __name__ == "__main__":
    sys.exit(main())
