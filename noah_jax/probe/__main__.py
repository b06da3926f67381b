"""Measures a frozen backbone: heads trained on its cached features, and k nearest neighbours.

    python -m noah_jax.probe --backbone runs/quickstart --heads linear noah --knn
    python -m noah_jax.probe --backbone runs/converted --dataset folder:imagenet --heads linear ep
    python -m noah_jax.probe --backbone hf://timm/resnet50.a1_in1k --heads --knn
    python -m noah_jax.probe --backbone resnet50 --dataset folder:photos    # fresh weights

The backbone is a run's or converted folder, a PyTorch file or a name such as hf://USER/NAME, and
its images are prepared as its weights ask for. A registered name stands for fresh weights, which
say what a probe gives without any training of the backbone.

Features are computed once, without augmentation, and cached with a checksum for every chunk. An
interrupted command goes on from the last chunk, and chunks that are corrupt are computed again. The
linear head and k-NN read the class token, or the mean of the last map where there is none; all
other heads read the map.

Each head is trained with all learning rates at once. The best one is chosen on a held-out part of
the training images, never on the evaluation split. Then the head is trained on all training images
with each seed, and measured once on the evaluation split. A learning rate is that of a batch of
256, and is scaled with the batch. Linear heads have MAE's recipe (LARS, standardised features, no
weight decay), other heads V-JEPA's optimizer (AdamW, weight decay 0.001), both for 90 epochs with a
cosine and a warm-up of a ninth.

WORKDIR gets probe.md, probe.csv, probe.json, and for each head and seed a model's folder with
backbone and head, for evaluate, explain, predict and export.
"""

import argparse
import sys

from noah_jax.cli import Parser, positive, program
from noah_jax.errors import UsageError
from noah_jax.inference.flags import add_ema, add_preprocessing, preprocessing_settings
from noah_jax.paths import local_path
from noah_jax.probe.choices import CACHE_DTYPES, OPTIMIZERS, Choices


def _parser() -> Parser:
    parser = Parser("python -m noah_jax.probe", __doc__)
    add = parser.add_argument
    default = Choices(backbone="")
    add("--backbone", metavar="NAME|PATH", required=True, help="what is probed, see above")
    add_ema(parser)
    add(
        "--dataset",
        metavar="NAME|folder:PATH|csv:PATH",
        help="a TFDS dataset, class folders or CSV files; by default the dataset that the backbone"
        " was trained on, else the embedded sample",
    )
    add("--data-dir", metavar="DIR", type=local_path, help="where TFDS keeps its prepared datasets")
    add("--train-split", metavar="SPLIT", help="images to train heads on; by default train")
    add(
        "--eval-split",
        metavar="SPLIT",
        help="images to measure on; by default the first that exists of validation, val and test",
    )
    add(
        "--heads",
        nargs="*",
        metavar="HEAD",
        default=list(default.heads),
        help="registered heads; by default linear noah, and none for k-NN alone",
    )
    add("--knn", action="store_true", help="classify by the nearest neighbours too, as DINO does")
    add(
        "--k",
        nargs="+",
        type=positive,
        metavar="N",
        default=list(default.neighbours),
        dest="neighbours",
        help="numbers of neighbours for --knn; by default 10 20 100 200",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        default=default.temperature,
        help="temperature of the neighbours' votes; by default 0.07",
    )
    add(
        "--epochs",
        type=positive,
        metavar="N",
        default=default.epochs,
        help="epochs of each training; by default 90",
    )
    add(
        "--batch-size",
        type=positive,
        metavar="N",
        help="features a training step; by default 1024, or less for fewer than 8192 images",
    )
    add(
        "--optimizer",
        choices=OPTIMIZERS,
        help="for all heads; by default lars for linear and adamw for the others",
    )
    add(
        "--learning-rates",
        nargs="+",
        type=float,
        metavar="X",
        help="learning rates to choose from, for a batch of 256 and all heads; a single one is"
        " taken as it is. By default a range for each optimizer",
    )
    add("--weight-decay", type=float, metavar="X", help="by default 0.001 for adamw, else 0")
    add(
        "--holdout",
        type=float,
        metavar="FRACTION",
        default=default.holdout,
        help="fraction of the training images that chooses the learning rate; by default 0.1",
    )
    add(
        "--seeds",
        nargs="+",
        type=int,
        metavar="N",
        default=list(default.seeds),
        help="seeds of the heads' weights and of the order; by default 0 1 2",
    )
    add(
        "--dtype",
        metavar="DTYPE",
        help="compute dtype of backbone and heads, such as bfloat16; by default the backbone's own",
    )
    add(
        "--cache",
        metavar="DIR",
        type=local_path,
        default=default.cache,
        help=f"local folder for features; by default {default.cache}",
    )
    add(
        "--cache-dtype",
        choices=CACHE_DTYPES,
        default=default.cache_dtype,
        help="how features are stored; by default float16, which rounds by at most 0.05 %%",
    )
    add(
        "--encoder-batch",
        type=positive,
        metavar="N",
        default=default.encoder_batch,
        help=f"images that the backbone encodes at a time; by default {default.encoder_batch}",
    )
    add("--threads", dest="num_threads", type=positive, metavar="N", help="decoding threads")
    add_preprocessing(parser)
    add(
        "--workdir",
        metavar="DIR",
        type=local_path,
        default=default.workdir,
        help=f"the folder for the results; by default {default.workdir}",
    )
    add("--dry-run", action="store_true", help="say what would be computed, write nothing")
    return parser


def _probe(arguments: argparse.Namespace) -> int:
    for flag, values in (("--heads", arguments.heads), ("--seeds", arguments.seeds)):
        if len(set(values)) < len(values):
            raise UsageError(f"{flag} repeats a value: {' '.join(map(str, values))}")
    settings = preprocessing_settings(vars(arguments))
    choices = Choices(**vars(arguments), settings=settings)
    choices.check()
    from noah_jax.probe.program import probe

    probe(choices)
    return 0


main = program(_probe, _parser)

if __name__ == "__main__":
    sys.exit(main())
