"""Images without a label, which TFDS marks by -1: never trained on, never counted as a class."""

import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from noah_jax.data.batches import eval_batches, train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.sampler import Sampler
from noah_jax.data.sources import open_sources
from noah_jax.data.transforms import TrainTransform, make_eval_transform
from noah_jax.errors import InputError
from noah_jax.evaluate.__main__ import main as evaluate_program
from noah_jax.train.setup import build

NAMES = ["ant", "bee", "cat"]
# One label an image, or a list of them; -1 is none.
SETS = {
    "single": {"train": [0, 1, -1, 2, -1, 1], "val": [2, -1, 0], "test": [-1] * 4},
    "several": {"train": [[0], [1, 2], [-1], [], [0, -1]], "val": [[2], [-1]], "test": [[-1]] * 3},
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """TFDS's folder with the sets `single` and `several`; an image's pixels are its index."""
    root = str(tmp_path_factory.mktemp("tfds"))
    label = tfds.features.ClassLabel(names=NAMES)
    _prepare(root, "single", label)
    _prepare(root, "several", tfds.features.Sequence(label))
    return root


def _prepare(root, set_name, label):
    class AnySet(tfds.core.GeneratorBasedBuilder):
        __module__ = "any_set"
        name = set_name
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(encoding_format="png"), "label": label}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {
                split: self._generate_examples(labels) for split, labels in SETS[set_name].items()
            }

        def _generate_examples(self, labels):
            for i, label in enumerate(labels):
                png = io.BytesIO()
                Image.new("RGB", (28, 28), (i, i, i)).save(png, "PNG")
                png.seek(0)
                yield i, {"image": png, "label": label}

    AnySet(data_dir=root, file_format="array_record").download_and_prepare()


def _open(name, data_dir, split):
    return open_sources(name, data_dir=data_dir, eval_split=split)


@pytest.mark.parametrize(("name", "count"), [("single", 2), ("several", 2)])
@pytest.mark.parametrize("cache", [False, True])
def test_training_passes_them_over_and_counts_them(name, count, cache, data_dir):
    source, _ = _open(name, data_dir, "val")
    told = []
    corrupt_images = CorruptImages("replace", told.append)
    batches = train_batches(
        DecodedSource(source, cache=cache),
        TrainTransform("none", (28, 28), flip=False),
        Sampler(0, len(source), 10),
        start_step=0,
        total_steps=6,
        num_threads=2,
        put=lambda x: x,
        corrupt_images=corrupt_images,
    )
    unlabelled = {i for i, label in enumerate(SETS[name]["train"]) if np.any(np.array(label) == -1)}
    for batch in batches:
        for image, label in zip(batch["image"], batch["label"], strict=True):
            index = image[0, 0, 0]
            assert index not in unlabelled
            own = SETS[name]["train"][index]
            assert label == own if name == "single" else np.flatnonzero(label).tolist() == own
    assert (corrupt_images.unlabelled, len(corrupt_images)) == (count, 0)
    assert len(told) == 1 and f"{name}/1.0.0:train has no label: its label is -1" in told[0]


@pytest.mark.parametrize("name", SETS)
def test_evaluation_leaves_them_out_and_counts_them(name, data_dir):
    corrupt_images = CorruptImages("replace", lambda line: None)
    _, source = _open(name, data_dir, "val")
    (batch,) = eval_batches(
        DecodedSource(source),
        make_eval_transform((28, 28), resize=None),
        batch_size=4,
        num_threads=1,
        put=lambda x: x,
        corrupt_images=corrupt_images,
    )
    has_label = [np.all(np.array(label) != -1) for label in SETS[name]["val"]]
    assert batch["mask"][: len(has_label)].tolist() == has_label
    assert corrupt_images.unlabelled == 1


def test_the_program_leaves_them_out(tiny_run, data_dir, capsys):
    arguments = ["--checkpoint", tiny_run, "--dataset", "single", "--data-dir", data_dir]
    assert evaluate_program([*arguments, "--split", "val", "--json"]) == 0
    out = capsys.readouterr()
    row = json.loads(out.out)
    assert (row["examples"], row["unlabelled"], row["damaged"]) == (2, 1, 0)
    assert "single/1.0.0:val: 1 of 3 images have no label and were left out" in out.err
    assert evaluate_program([*arguments, "--split", "test"]) == 1
    out = capsys.readouterr()
    assert out.out == "" and "none of the 4 images of single/1.0.0:test can be evaluated" in out.err
    assert "4 have no label" in out.err


@pytest.mark.parametrize(("name", "loss"), [("single", "softmax"), ("several", "sigmoid")])
@pytest.mark.parametrize(
    ("key", "other"), [("eval_split", "train_split"), ("train_split", "eval_split")]
)
def test_a_split_without_labels_is_refused_at_once(name, loss, key, other, data_dir, tiny_config):
    tiny_config.dataset, tiny_config.data.dir, tiny_config.loss = name, data_dir, loss
    tiny_config.data[key], tiny_config.data[other] = "test", "train"
    words = rf"{name}/1.0.0:test seems to have no labels: .*; choose another data\.{key}"
    with pytest.raises(InputError, match=words):
        build(tiny_config)


def test_an_evaluation_without_images_is_an_error(tiny_config):
    inputs = build(tiny_config).inputs
    inputs.check_evaluated(1)
    with pytest.raises(InputError, match=r"none of the 21 images of .*/val can be evaluated"):
        inputs.check_evaluated(0)


@pytest.mark.parametrize("label", [-1, 3, -(2**31)])
def test_labels_of_any_source_are_checked(label):
    class _Source:
        name, class_names, multi_label = "mine", NAMES, False

        def __len__(self):
            return 1

        def __getitem__(self, index):
            png = io.BytesIO()
            Image.new("RGB", (2, 2)).save(png, "PNG")
            return png.getvalue(), label

        def describe(self, index):
            return f"image {index} of mine"

    with pytest.raises(InputError, match=f"image 0 of mine has no label: its label is {label}, "):
        DecodedSource(_Source())[0]
