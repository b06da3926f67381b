"""Accuracy and loss of trained models over every image of a dataset, each counted once.

    python -m noah_jax.evaluate --checkpoint runs/quickstart
    python -m noah_jax.evaluate --checkpoint runs/quickstart/checkpoints --report report
    python -m noah_jax.evaluate --checkpoint runs/converted runs/mine --dataset folder:imagenet
    python -m noah_jax.evaluate --checkpoint runs/converted --dataset folder:imagenetv2 \\
        --labels imagenetv2.csv
    python -m noah_jax.evaluate --checkpoint runs/converted --dataset imagenet2012 \\
        --real-labels real.json

A checkpoint is a training run's folder (its newest checkpoint), RUN/checkpoints/STEP,
RUN/checkpoints (all of them, one row each), a converted folder, a PyTorch file, a folder that
holds such folders, or what is downloaded once: hf://USER/NAME[@REVISION], released://NAME or
https://.../NAME-CHECKSUM.pth. Images are prepared as the checkpoint says, which is told on standard
error: a run's own evaluation, what was given when the weights were converted, timm's pretrained_cfg
in the config.json beside them, or else what was published for the architecture; --mean, --std,
--resize, --crop and --interpolation replace it. All devices of the process share the work. Images
that cannot be decoded are named on standard error and left out. Of class folders that the training
split, only the images that it did not train on are evaluated. The exit code is 0, or 1 after an
error.

Models that were trained for several labels an image (config.loss is sigmoid or asymmetric) are
measured by mean average precision (mAP, and its variants in VOC 2010 and VOC 2007) and by
precision, recall and F1 score, averaged over the classes (CP, CR, CF1) and over all decisions (OP,
OR, OF1). A class is predicted if its probability is above one half; --json also has the scores
where only an image's three most likely classes may be predicted (cf1_top3, ...).
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.inference.flags import (
    add_batches,
    add_ema,
    add_preprocessing,
    preprocessing_settings,
)
from noah_jax.paths import local_path


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.evaluate", __doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="PATH",
        nargs="+",
        type=local_path,
        required=True,
        help="the models to evaluate",
    )
    add_ema(parser)
    add(
        "--dataset",
        metavar="NAME|folder:PATH|csv:PATH|coco:PATH|voc:PATH|wds:PATH|hf:NAME",
        help="a TFDS dataset; a folder PATH/val/CLASS/IMAGE or PATH/CLASS/IMAGE; or, for several"
        " labels an image, PATH/val.csv, or the folder of COCO or of a year of PASCAL VOC;"
        " WebDataset shards; or a dataset of Hugging Face. By default the dataset that the"
        " checkpoint was trained on",
    )
    add("--data-dir", metavar="DIR", type=local_path, help="where TFDS keeps its prepared datasets")
    add(
        "--split",
        help="the split to evaluate; by default the first that exists of validation, val and test",
    )
    add(
        "--labels",
        metavar="FILE",
        type=local_path,
        help="CSV lines `file,label` (a class index or the name of a class) that replace the"
        " dataset's own labels; images that it does not name are left out. Where classes are called"
        " by numbers, name:1, index:1 or the header file,name or file,index says which is meant",
    )
    add(
        "--real-labels",
        metavar="FILE",
        type=local_path,
        help="the JSON file of ImageNet-ReaL: a list of the correct labels for each image, in the"
        " order of the file names; adds the top-1 over the images that have any",
    )
    add_batches(parser, 128)
    add_preprocessing(parser)
    add(
        "--report",
        metavar="DIR",
        type=local_path,
        help="write the accuracy of each class and the confusion matrix to DIR: report.json,"
        " classes.csv, confusion.csv and confusion.png. With several labels an image, the average"
        " precision of each class and no confusion matrix. Several checkpoints get a folder each",
    )
    add("--json", action="store_true", help="print one JSON object a line instead of the table")
    return parser


def _evaluate(arguments: argparse.Namespace) -> int:
    from noah_jax.evaluate.program import evaluate_all
    from noah_jax.evaluation.dataset import DatasetChoice

    evaluate_all(
        arguments.checkpoint,
        DatasetChoice(
            dataset=arguments.dataset,
            data_dir=arguments.data_dir,
            split=arguments.split,
            labels=arguments.labels,
            real_labels=arguments.real_labels,
        ),
        ema=arguments.ema,
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
        report=arguments.report,
        as_json=arguments.json,
        settings=preprocessing_settings(vars(arguments)),
    )
    return 0


main = program(_evaluate, _parser)

if __name__ == "__main__":
    sys.exit(main())
