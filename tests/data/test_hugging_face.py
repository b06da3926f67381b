"""Datasets of Hugging Face, read by its library from local files."""

import pathlib

import numpy as np
import pytest

from noah_jax.data.record import record_data
from noah_jax.data.sources import open_eval_source, open_sources
from noah_jax.errors import InputError, UnlabelledImageError
from tests.shards import folder_samples

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """No request to a network, and none of the user's cache."""
    patch = pytest.MonkeyPatch()
    folder = str(tmp_path_factory.mktemp("cache"))
    patch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    patch.undo()


def _table(class_folders, split, **columns):
    samples = list(folder_samples(pathlib.Path(class_folders) / split))
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["ant", "bee", "cat"]),
    }
    values = {
        "image": [{"bytes": files["png"], "path": f"{key}.png"} for key, files in samples],
        "label": [int(files["cls"]) for _, files in samples],
    }
    for name, (feature, column) in columns.items():
        features[name], values[name] = feature, column(len(samples))
    features = {key: feature for key, feature in features.items() if feature is not None}
    values = {key: values[key] for key in features}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


@pytest.fixture(scope="module")
def folder(class_folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    for split, name in (("train", "train"), ("val", "validation")):
        _table(class_folders, split).to_parquet(root / f"{name}-00000.parquet")
    return root


def test_a_dataset_is_the_folders_that_it_was_made_of(folder, class_folders):
    expected = open_sources(class_folders)
    sources = open_sources(f"hf:{folder}")
    for source, images in zip(sources, expected, strict=True):
        assert len(source) == len(images) and source.class_names == ["ant", "bee", "cat"]
        for index in (0, 9, len(source) - 1):
            assert source[index] == images[index]
            assert source.file_name(index) == images.file_name(index)
    assert set(record_data(*sources)["train"]) == {"images", "fingerprint"}
    assert len(open_eval_source(f"hf:{folder}/train-00000.parquet", split="train")) == 60


def test_a_saved_dataset(class_folders, tmp_path):
    many = (datasets.Sequence(datasets.Value("string")), lambda n: [["b", "a"], []] * (n // 2))
    table = _table(class_folders, "train", label=many)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "two")
    _, source = open_sources(f"hf:{tmp_path}/two")
    assert source.multi_label and source.class_names == ["a", "b"]
    assert [source[i][1].tolist() for i in range(2)] == [[1, 1], [0, 0]]
    assert source.fingerprint == open_eval_source(f"hf:{tmp_path}/one", split="train").fingerprint


def test_labels_and_columns(class_folders, tmp_path):
    def open_with(class_names=None, **columns):
        table = _table(class_folders, "val", **columns)
        table.to_parquet(tmp_path / "test-0.parquet")
        return open_eval_source(f"hf:{tmp_path}", class_names=class_names)

    numbers = (datasets.Value("int64"), lambda n: [5, None, *range(n - 2)])
    source = open_with(label=numbers)
    assert source.class_names == [str(i) for i in range(19)]
    assert [source[i][1] for i in range(3)] == [5, -1, 0]
    texts = (datasets.Value("string"), lambda n: ["dog", "cat"] * n)
    texts = (texts[0], lambda n: (["dog", "cat"] * n)[:n])
    assert open_with(label=texts).class_names == ["cat", "dog"]
    with pytest.raises(InputError, match="labels that are none of its 2 classes: dog"):
        open_with(class_names=["cat", "cow"], label=texts)
    other = (datasets.ClassLabel(names=["x", "y"]), lambda n: [1] * n)
    gone = (None, lambda n: None)
    assert open_with(label=gone, kind=other).class_names == ["x", "y"]
    with pytest.raises(InputError, match="a column called label, labels, fine_label, or one of"):
        open_with(label=gone, kind=other, kind2=other)
    with pytest.raises(InputError, match="must have one column of images, it has 0"):
        open_with(image=gone)
    lists = (datasets.Sequence(datasets.ClassLabel(names=["x", "y"])), lambda n: [[-1]] * n)
    with pytest.raises(UnlabelledImageError, match="its label is -1"):
        open_with(label=lists)[0]


def test_datasets_that_are_not_there(folder):
    with pytest.raises(InputError, match="hf:no/such cannot be loaded by the library datasets"):
        open_sources("hf:no/such@main:small")
    with pytest.raises(InputError, match="must be hf:NAME"):
        open_sources("hf:")
    with pytest.raises(InputError, match="has no split 'dev'; it has train, validation"):
        open_sources(f"hf:{folder}", eval_split="dev")
    assert np.asarray(open_sources(f"hf:{folder}")[0][0][1]) == 0
