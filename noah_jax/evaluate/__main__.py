"""Accuracy and loss of trained models over every image of a dataset, each counted once.

    python -m noah_jax.evaluate --checkpoint runs/quickstart
    python -m noah_jax.evaluate --checkpoint runs/quickstart/checkpoints --report report
    python -m noah_jax.evaluate --checkpoint runs/converted runs/mine --dataset folder:imagenet
    python -m noah_jax.evaluate --checkpoint runs/converted --dataset folder:imagenetv2 \\
        --labels imagenetv2.csv
    python -m noah_jax.evaluate --checkpoint runs/converted --dataset imagenet2012 \\
        --real-labels real.json
    python -m noah_jax.evaluate --checkpoint runs/converted --dataset folder:imagenet-r \\
        --classes-of imagenet
    python -m noah_jax.evaluate --checkpoint runs/quickstart --calibration --report report
    python -m noah_jax.evaluate --checkpoint runs/quickstart --against runs/linear

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

With --classes-of imagenet, the folders of ImageNet-A, -R, -Sketch or -V2 are evaluated by a model
of ImageNet's 1,000 classes: top-1, top-5 and loss are among the classes that have a folder, as the
authors of ImageNet-A and -R measure, and `top-1 of all` is among all. In the folder of ImageNet-C,
every corruption and severity is evaluated among all classes, without enlarging the images, and
the mean corruption error (mCE) is normalised by AlexNet's errors. --calibration adds the expected
calibration error in 15 bins, NLL, the Brier score, and a temperature that is fitted on one half of
the images and measured on the other. --against tests whether two models differ on the same images:
McNemar's exact test, and a bootstrap interval of the difference.
"""

import argparse
import sys

from noah_jax.cli import Parser, program
from noah_jax.errors import UsageError
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
        help="the models to evaluate; with --against also a CSV file that --predictions wrote",
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
    add(
        "--classes-of",
        choices=["imagenet"],
        help="the folders of --dataset folder:PATH are named by WordNet ids of ImageNet's classes"
        " (n01440764), or by their numbers as in ImageNet-V2, and may be a part of them; or PATH"
        " holds ImageNet-C, CORRUPTION/SEVERITY/n01440764/image",
    )
    add(
        "--calibration",
        action="store_true",
        help="measure the calibration too, and fit a temperature; with --report also draw"
        " reliability.png. Keeps all logits in memory, 4 bytes for each image and class",
    )
    add(
        "--against",
        metavar="PATH",
        type=local_path,
        help="a second model, or a CSV file that --predictions wrote: test whether the one"
        " --checkpoint differs from it on the same images, each prepared as its model wants",
    )
    add(
        "--predictions",
        metavar="FILE",
        type=local_path,
        help="write CSV lines `file,label,predicted,probability`, one for each image",
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
    _check(arguments)
    from noah_jax.evaluate.program import Options, evaluate_all
    from noah_jax.evaluation.dataset import DatasetChoice

    choice = DatasetChoice(
        dataset=arguments.dataset,
        data_dir=arguments.data_dir,
        split=arguments.split,
        labels=arguments.labels,
        real_labels=arguments.real_labels,
        classes_of=arguments.classes_of,
    )
    options = Options(
        ema=arguments.ema,
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads,
        report=arguments.report,
        as_json=arguments.json,
        settings=preprocessing_settings(vars(arguments)),
        calibration=arguments.calibration,
        predictions=arguments.predictions,
        against=arguments.against,
    )
    if arguments.classes_of is not None:
        from noah_jax.evaluation.corruptions import find_corruptions
        from noah_jax.evaluation.wordnet_folders import root_folder

        root = root_folder(arguments.dataset)
        if folders := find_corruptions(root):
            _check_corruptions(arguments)
            from noah_jax.evaluate.corruption_program import evaluate_corruptions

            evaluate_corruptions(arguments.checkpoint, root, folders, options)
            return 0
    if arguments.against is not None:
        from noah_jax.evaluate.paired_program import evaluate_against

        evaluate_against(arguments.checkpoint, choice, options)
        return 0
    evaluate_all(arguments.checkpoint, choice, options)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises a UsageError if options exclude each other."""
    if arguments.classes_of is not None and arguments.labels is not None:
        raise UsageError(
            "--labels replaces the labels that --classes-of takes from the folders; give one of"
            " the two"
        )
    saved = [path for path in arguments.checkpoint if path.endswith(".csv")]
    if saved and arguments.against is None:
        raise UsageError(f"{saved[0]} holds predictions, which only --against takes")


def _check_corruptions(arguments: argparse.Namespace) -> None:
    """Raises a UsageError if an option does not fit ImageNet-C."""
    for option in ("against", "calibration", "predictions", "real_labels", "split"):
        if getattr(arguments, option):
            raise UsageError(
                f"--{option.replace('_', '-')} does not fit ImageNet-C, which is many sets; give"
                " one of them, as --dataset folder:PATH/gaussian_noise/3"
            )


main = program(_evaluate, _parser)

if __name__ == "__main__":
    sys.exit(main())
