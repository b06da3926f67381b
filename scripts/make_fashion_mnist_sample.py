"""Rebuilds the embedded sample of Fashion-MNIST from Debian's `dataset-fashion-mnist`.

    apt-get install dataset-fashion-mnist
    python scripts/make_fashion_mnist_sample.py

Takes the first 1,000 training and the first 200 test images of each of the ten classes, in the
order of the original files. TFDS prepares them as lossless PNG in ArrayRecord format under
`noah_jax/data/sample`, so the sample is read in the same way as ImageNet. Needs no TensorFlow.
"""

from noah_jax.cli import show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import argparse
import gzip
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

Examples = Iterator[tuple[int, dict[str, Any]]]  # index and features of each image

PACKAGE_DATA = os.path.join(os.path.dirname(os.path.dirname(__file__)), "noah_jax/data/sample")
CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def read_idx(path: str) -> np.ndarray:
    """Reads an array of bytes in LeCun's IDX format, gzipped."""
    with gzip.open(path) as file:
        data = file.read()
    dims = data[3]
    shape = np.frombuffer(data, ">u4", dims, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


class FashionMnistSample(tfds.core.GeneratorBasedBuilder):
    """A class-balanced sample of Fashion-MNIST: 10,000 training and 2,000 test images."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, source: str, **kwargs: Any) -> None:
        self._source = source
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            license="MIT, Copyright (c) 2017 Zalando SE",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        del dl_manager
        return {
            "train": self._generate_examples("train", 1000),
            "test": self._generate_examples("t10k", 200),
        }

    def _generate_examples(self, prefix: str, per_class: int) -> Examples:
        images = read_idx(os.path.join(self._source, f"{prefix}-images-idx3-ubyte.gz"))
        labels = read_idx(os.path.join(self._source, f"{prefix}-labels-idx1-ubyte.gz"))
        chosen = [np.flatnonzero(labels == c)[:per_class] for c in range(len(CLASSES))]
        for index in np.sort(np.concatenate(chosen)).tolist():
            png = io.BytesIO()
            Image.fromarray(images[index]).save(png, "PNG", optimize=True)
            png.seek(0)
            yield index, {"image": png, "label": int(labels[index])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--out", default=PACKAGE_DATA)
    args = parser.parse_args()
    if not os.path.isdir(args.source):
        raise SystemExit(f"{args.source} is missing; apt-get install dataset-fashion-mnist")
    shutil.rmtree(os.path.join(args.out, "fashion_mnist_sample"), ignore_errors=True)
    builder = FashionMnistSample(args.source, data_dir=args.out, file_format="array_record")
    with tempfile.TemporaryDirectory() as downloads:  # nothing is downloaded into it
        builder.download_and_prepare(download_dir=downloads)
    for split, info in builder.info.splits.items():
        print(f"{split}: {info.num_examples} images in {builder.data_dir}")


if __name__ == "__main__":
    main()
