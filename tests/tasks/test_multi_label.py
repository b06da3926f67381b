"""Images with several labels: losses, metrics, sources."""

import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from noah_jax.config import default_config
from noah_jax.data.csv_files import CsvSource
from noah_jax.data.prepare import Split, prepare
from noah_jax.data.sources import open_sources
from noah_jax.errors import UnreadableImageError
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.tasks.multi_label import (
    asymmetric_loss,
    average_precision,
    make_loss,
    measure,
    sigmoid_loss,
)
from noah_jax.train.setup import build


def test_the_losses_are_their_formulas():
    logits = np.array([-30.0, -2.0, 0.0, 0.5, 3.0, 30.0], np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for target in (0.0, 1.0):
        targets = np.full_like(logits, target)
        expected = np.logaddexp(0, -logits) if target else np.logaddexp(0, logits)
        np.testing.assert_allclose(sigmoid_loss(logits, targets), expected, rtol=1e-5)
        plain = asymmetric_loss(logits, targets, gamma_negative=0, margin=0)
        np.testing.assert_allclose(plain, expected, rtol=1e-5)
    shifted = np.maximum(p - 0.05, 0)
    loss = asymmetric_loss(logits, np.zeros(6), gamma_negative=4, margin=0.05)
    np.testing.assert_allclose(loss, -(shifted**4) * np.log1p(-shifted), rtol=1e-5)
    assert abs(loss[0]) < 1e-30 and loss[-1] > 2
    loss = asymmetric_loss(logits[:5], np.ones(5), gamma_positive=2)
    np.testing.assert_allclose(loss, (1 - p[:5]) ** 2 * np.logaddexp(0, -logits[:5]), rtol=2e-5)


def test_gradients_are_finite_everywhere():
    logits = jnp.array([-100.0, -3.0, 0.0, 3.0, 100.0])
    for gamma in (0.0, 0.5, 4.0):
        for margin in (0.0, 0.05):
            for target in (0.0, 1.0):
                grads = jax.grad(
                    lambda x, t=target, g=gamma, m=margin: asymmetric_loss(
                        x, jnp.full(5, t), gamma_negative=g, margin=m
                    ).sum()
                )(logits)
                assert np.isfinite(grads).all(), (gamma, margin, target)


def test_constant_focusing_factors():
    """Values stay; the gradient is that of the cross entropy, times the factor."""
    logits = jnp.array([-2.0, 0.5, 3.0])

    def loss(x, target, constant):
        return asymmetric_loss(x, jnp.full(3, target), gamma_positive=1, constant_focus=constant)

    p = jax.nn.sigmoid(logits)
    for target in (0.0, 1.0):
        assert (loss(logits, target, True) == loss(logits, target, False)).all()
    gradient = jax.grad(lambda x: loss(x, 1.0, True).sum())(logits)
    np.testing.assert_allclose(gradient, -((1 - p) ** 2), rtol=1e-5)
    gradient = jax.grad(lambda x: loss(x, 0.0, True).sum())(logits)
    shifted = p - 0.05
    np.testing.assert_allclose(gradient, shifted**4 / (1 - shifted) * p * (1 - p), rtol=1e-4)


def test_bad_losses():
    config = default_config()
    with pytest.raises(ValueError, match=r"one of sigmoid, asymmetric .* got 'softmax'"):
        make_loss("softmax", config.asymmetric)
    for key, value in (("gamma_negative", -1.0), ("margin", 1.0)):
        changed = {**config.asymmetric, key: value}
        with pytest.raises(ValueError, match=f"asymmetric.{key} must be"):
            make_loss("asymmetric", changed)
    loss = make_loss("asymmetric", {**config.asymmetric, "margin": 0.2})(
        jnp.array([-2.0]), jnp.array([0.0])
    )
    assert loss == asymmetric_loss(jnp.array([-2.0]), jnp.array([0.0]), margin=0.2)


def _slowly(scores, labels):
    """Computes the average precisions from their definitions."""
    counted = labels >= 0
    scores, labels = scores[counted], labels[counted]
    thresholds = sorted(set(scores), reverse=True)
    points = []
    for threshold in thresholds:
        chosen = scores >= threshold
        right = (chosen & (labels == 1)).sum()
        points.append((right / (labels == 1).sum(), right / chosen.sum()))
    exact = voc = last = 0.0
    for i, (recall, precision) in enumerate(points):
        exact += (recall - last) * precision
        voc += (recall - last) * max(p for _, p in points[i:])
        last = recall
    eleven = [
        max([p for r, p in points if r >= level / 10 - 1e-9], default=0) for level in range(11)
    ]
    return {"exact": exact, "voc": voc, "voc07": sum(eleven) / 11}


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_its_definition(seed):
    random = np.random.default_rng(seed)
    scores = random.normal(size=40)
    if seed % 2:
        scores = scores.round()  # many are equal
    labels = random.choice([1, 0, -1], 40, p=[0.3, 0.5, 0.2])
    actual, expected = average_precision(scores, labels), _slowly(scores, labels)
    assert actual == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand():
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 0, 1])
    actual = average_precision(scores, labels)
    assert actual["exact"] == pytest.approx((1 + 2 / 4) / 2)
    # The precision is 1 at the six recalls up to 0.5, and one half at the other five.
    assert actual["voc07"] == pytest.approx((6 + 5 / 2) / 11)
    assert average_precision(scores, np.ones(4))["voc07"] == 1
    assert np.isnan(average_precision(scores, np.zeros(4))["exact"])
    # An ignored image does not count.
    assert average_precision(scores, np.array([1, -1, 0, 1])) == average_precision(
        scores[[0, 2, 3]], np.array([1, 0, 1])
    )


def test_metrics_by_hand():
    #                   class 0           class 1          class 2: absent
    logits = np.array([[+1, +1, -1], [+1, -1, -1], [-1, +1, +1], [-1, +1, -1]], np.float32)
    labels = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, -1, 0]])
    metrics = measure(logits, labels)
    # Class 0: 2 predicted, 1 correct, 2 present. Class 1: 2 predicted (one of them ignored),
    # 1 correct, 2 present.
    assert metrics["cp"] == metrics["cr"] == metrics["cf1"] == pytest.approx(50)
    # Class 2 is predicted once, which counts only in the metrics over all decisions.
    assert metrics["op"] == pytest.approx(100 * 2 / 5) and metrics["or"] == pytest.approx(50)
    assert metrics["of1"] == pytest.approx(100 * 2 * 0.4 * 0.5 / 0.9)
    assert np.isnan(metrics["per_class"][2]) and metrics["map"] == np.mean(metrics["per_class"][:2])


def test_only_three_classes_of_an_image():
    logits = np.array([[5, 4, 3, 2, 1], [5, -1, 3, 2, 1]], np.float32)
    labels = np.array([[1, 1, 0, 1, 0], [-1, 1, 0, 1, 1]])
    metrics = measure(logits, labels)
    assert metrics["op"] == pytest.approx(100 * 5 / 8) and metrics["or"] == pytest.approx(500 / 6)
    # The first three of each image that are not ignored; classes 0 to 2, and 2 to 4.
    assert metrics["op_top3"] == metrics["or_top3"] == pytest.approx(100 * 4 / 6)
    # Precision is 1, 1, 1 and 1 where a class is there and 0 for class 2, which does not count.
    assert metrics["cp_top3"] == 100
    assert metrics["cr_top3"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 2 + 1) / 4)
    # Classes below one half are not predicted, whatever their rank.
    assert measure(logits - 10, labels)["op_top3"] == 0


def _write_images(folder, count=6):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")


def test_csv(tmp_path):
    _write_images(tmp_path / "images")
    (tmp_path / "train.csv").write_text(
        f"image,labels\nimages/0.png,dog;cat\nimages/1.png,\n{tmp_path}/images/2.png, bird ; -cat\n"
    )
    (tmp_path / "val.csv").write_text("image,labels\nimages/3.png,cat\n")
    train, evaluation = open_sources(f"csv:{tmp_path}")
    assert train.multi_label and train.class_names == ["bird", "cat", "dog"]
    assert [train[i][1].tolist() for i in range(3)] == [[0, 1, 1], [0, 0, 0], [1, -1, 0]]
    assert train[2][0] == (tmp_path / "images/2.png").read_bytes()
    assert train.describe(0) == str(tmp_path / "images/0.png")
    assert train.file_name(0) == "0.png"
    assert len(evaluation) == 1 and evaluation[0][1].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must start with the header image,labels; it starts with nothing"),
        ("path,label\na,b\n", "it starts with path,label"),
        ("image,labels\na.png,b,c\n", r"line 2: must be a path and labels .* got 3 column"),
        ("image,labels\n", "lists no images"),
        ("image,labels\na.png,fish\n", "labels unknown to the training: fish"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        CsvSource(epath.Path(tmp_path / "val.csv"), class_names=["cat"])


def test_an_image_that_is_not_there_is_named(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("image,labels\na.png,cat\n")
    train, _ = open_sources(f"csv:{tmp_path}")
    with pytest.raises(UnreadableImageError, match=r"a\.png cannot be read: No such file"):
        train[0]


def test_absent_csv(tmp_path):
    (tmp_path / "train.csv").write_text("image,labels\na.png,cat\n")
    with pytest.raises(ValueError, match=r"has no split 'validation'; it has train"):
        open_sources(f"csv:{tmp_path}")
    with pytest.raises(ValueError, match=r"data folder .*none does not exist"):
        open_sources(f"csv:{tmp_path}/none")


def _coco_features():
    """Returns the features of TFDS's `coco`, whose own module needs TensorFlow."""
    features = tfds.features
    item = {
        "area": np.int64,
        "bbox": features.BBoxFeature(),
        "id": np.int64,
        "is_crowd": np.bool_,
        "label": features.ClassLabel(names=["person", "bicycle", "car"]),
    }
    return features.FeaturesDict(
        {
            "image": features.Image(encoding_format="jpeg"),
            "image/filename": features.Text(),
            "image/id": np.int64,
            "objects": features.Sequence(item),
        }
    )


def _jpeg():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return io.BytesIO(file.getvalue())


def _prepare(name, features, examples, tmp_path):
    identity = DatasetIdentity(
        name=name, version=tfds.core.Version("1.0.0"), data_dir="", module_name=__name__
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features, disable_shuffling=True)
    serializer = ExampleSerializer(features.get_serialized_info())

    def records():
        for example in examples:
            proto = serializer.get_tf_example(features.encode_example(example))
            yield proto.SerializeToString()

    splits = [Split(split, len(examples), [records], split) for split in ("train", "validation")]
    prepare(info, splits, str(tmp_path))
    return open_sources(name, data_dir=str(tmp_path))


def test_datasets_like_coco(tmp_path):
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    examples = [
        {
            "image": _jpeg(),
            "image/filename": "a",
            "image/id": 3,
            "objects": [
                {"area": 1, "bbox": box, "id": i, "is_crowd": False, "label": label}
                for i, label in enumerate(labels)
            ],
        }
        for labels in (["car", "person", "car"], [])
    ]
    train, evaluation = _prepare("my_coco", _coco_features(), examples, tmp_path)
    assert train.multi_label and train.class_names == ["person", "bicycle", "car"]
    assert train[0][1].tolist() == [1, 0, 1] and evaluation[1][1].tolist() == [0, 0, 0]
    assert train[0][0].startswith(b"\xff\xd8") and train.file_name(0) == "a"


def test_voc_ignores_difficult_objects(tmp_path):
    features = tfds.builder("voc").info.features  # TFDS's own
    names = features["labels"].feature.names
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    example = {
        "image": _jpeg(),
        "image/filename": "a",
        "objects": [
            {
                "bbox": box,
                "is_difficult": difficult,
                "is_truncated": False,
                "label": label,
                "pose": "frontal",
            }
            for label, difficult in (("cat", False), ("dog", True))
        ],
        "labels": ["cat", "dog"],
        "labels_no_difficult": ["cat"],
    }
    train, _ = _prepare("my_voc", features, [example], tmp_path)
    labels = dict(zip(train.class_names, train[0][1].tolist(), strict=True))
    assert len(names) == 20 and train.class_names == names
    assert labels.pop("cat") == 1 and labels.pop("dog") == -1 and not any(labels.values())


def test_evaluating_a_dataset_like_voc(multi_label_run, csv_folder, tmp_path, capsys):
    labels = tfds.features.Sequence(tfds.features.ClassLabel(names=["green", "red"]))
    features = {"image": tfds.features.Image(), "labels": labels, "labels_no_difficult": labels}
    source = CsvSource(epath.Path(csv_folder) / "val.csv")
    examples = [
        {
            "image": png,
            "labels": np.flatnonzero(values),
            "labels_no_difficult": np.flatnonzero(values == 1),
        }
        for png, values in map(source.__getitem__, range(len(source)))
    ]
    _prepare("my_voc", tfds.features.FeaturesDict(features), examples, tmp_path)
    capsys.readouterr()
    arguments = ["--dataset", "my_voc", "--data-dir", str(tmp_path), "--json"]
    assert evaluate(["--checkpoint", multi_label_run, *arguments]) == 0
    actual = json.loads(capsys.readouterr().out)
    results = json.loads((pathlib.Path(multi_label_run) / "results.json").read_text())
    for key in ("map", "map_voc", "map_voc07", "cf1", "of1", "loss"):
        assert actual[key] == pytest.approx(results[key], rel=1e-5), key


def test_ignored_labels_have_no_gradient(multi_label_config):
    setup = build(multi_label_config)
    per_image = setup.task.per_image
    labels = jnp.array([[1, -1], [-1, -1]])
    grads = jax.grad(lambda x: per_image(x, labels)["loss"].sum())(jnp.array([[0.1, 2.0]] * 2))
    assert grads[0, 0] != 0 and grads[0, 1] == 0 and not grads[1].any()
    mixed = jnp.array([[0.5, 0.5], [0.5, 0.5]])
    assert per_image(jnp.zeros((2, 2)), labels, mixed)["loss"][1] == 0


def test_mixing_several_labels(multi_label_config):
    multi_label_config.mixup = 0.8
    augment = build(multi_label_config).steps.augment
    labels = jnp.array([[1, 0], [0, 0], [1, 1], [1, -1], [0, 1]] * 2)
    images = jax.random.normal(jax.random.key(1), (10, 28, 28, 3))
    _, targets = augment(jax.random.key(0), images, labels)
    there = (labels == 1).astype(jnp.float32)
    weight = (targets - there[::-1])[1, 0] / (there - there[::-1])[1, 0]
    np.testing.assert_allclose(targets, weight * there + (1 - weight) * there[::-1], atol=1e-6)
    assert 0 < weight < 1


def test_losses_that_do_not_fit_the_dataset(multi_label_config, class_folders):
    multi_label_config.loss = "softmax"
    with pytest.raises(ValueError, match="have several labels: set loss=sigmoid"):
        build(multi_label_config)
    multi_label_config.loss = "sigmoid"
    multi_label_config.smoothing = 0.1
    with pytest.raises(ValueError, match=r"smoothing=0.1 does not go with loss=sigmoid"):
        build(multi_label_config)
    multi_label_config.dataset = class_folders
    with pytest.raises(ValueError, match="one for each: set loss=softmax"):
        build(multi_label_config)
