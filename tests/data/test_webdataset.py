"""WebDataset shards: their index, splits, classes and labels."""

import json
import pathlib
import pickle
import tarfile

import numpy as np
import pytest

from noah_jax.data.record import record_data
from noah_jax.data.sources import open_eval_source, open_sources
from noah_jax.data.streaming.cache import ShardCache
from noah_jax.data.streaming.shards import expand_braces, find_shards
from noah_jax.errors import InputError
from tests.shards import folder_samples, write_tar, write_webdataset


@pytest.fixture(scope="module")
def shards(class_folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    write_webdataset(root, class_folders)
    return root


@pytest.fixture
def cache(tmp_path):
    return ShardCache(str(tmp_path / "cache"))


def _contents(source):
    return [
        (data, np.asarray(label).tolist())
        for data, label in map(source.__getitem__, range(len(source)))
    ]


def test_shards_are_the_folders_that_they_were_made_of(shards, class_folders, cache):
    expected = open_sources(class_folders)
    sources = open_sources(f"wds:{shards}", cache=cache)
    for source, folder in zip(sources, expected, strict=True):
        assert source.class_names == ["ant", "bee", "cat"] and not source.multi_label
        assert _contents(source) == _contents(folder)
        assert source.file_name(3) == folder.file_name(3)
    assert sources[0].shard_lengths == (15, 15, 15, 15)
    assert sources[0].describe(16) == f"ant/16.png in {shards}/train-0001.tar"
    record = record_data(*sources)["train"]
    assert record["images_by_class"] == [20, 20, 20] and "name" not in record
    # It goes to worker processes, and takes no time to open again.
    assert pickle.loads(pickle.dumps(sources[1]))[4] == sources[1][4]


def test_the_index_is_kept_and_checked(shards, cache, monkeypatch):
    def lengths():
        return [len(source) for source in open_sources(f"wds:{shards}", cache=cache)]

    assert lengths() == [60, 21]
    reads = []
    monkeypatch.setattr(
        "noah_jax.data.webdataset.index_tar", lambda *args: reads.append(args) or pytest.fail()
    )
    assert lengths() == [60, 21]
    monkeypatch.undo()
    # A file with a wrong bit is read anew.
    for file in (shards / cache.folder).rglob("*.npz"):
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
    assert lengths() == [60, 21]


def test_patterns(shards, cache):
    pattern = f"wds:{shards}/train-{{0000..0003}}.tar"
    train, evaluation = open_sources(pattern, eval_split="val-*.tar", cache=cache)
    assert (len(train), len(evaluation)) == (60, 21)
    assert len(open_eval_source(pattern, cache=cache)) == 60
    whole = f"{shards}/train-0000.tar::{shards}/val-000{{1,0}}.tar"
    assert [shard.name[:-4] for shard in find_shards(whole)] == [
        "train-0000",
        "val-0001",
        "val-0000",
    ]
    assert list(expand_braces("a{08..11}b{x,y}"))[:3] == ["a08bx", "a08by", "a09bx"]
    for name, eval_split, words in (
        (pattern, None, "give data.eval_split a pattern"),
        (f"wds:{shards}", "dev-*.tar", r"no file matches .*/dev-\*\.tar"),
        (f"wds:{shards}", "dev", "has no split 'dev'; it has train, val"),
        (f"wds:{shards}/trian-0000.tar", "val", "did you mean .*/train-0000.tar"),
        (f"wds:{shards}/a{{5..2}}.tar", "val", r"\{5\.\.2\} .* must go from a number to a higher"),
        (f"wds:{shards}/none", None, "none does not exist"),
        ("wds:xyz://bucket/{0..3}.tar", "a.tar", "xyz://bucket cannot be opened"),
    ):
        with pytest.raises(InputError, match=words):
            open_sources(name, eval_split=eval_split, cache=cache)


def test_splits_by_names_folders_and_a_list(class_folders, cache, tmp_path):
    samples = list(folder_samples(pathlib.Path(class_folders) / "val"))
    for name in ("set-train-00-of-02", "set-train-01-of-02", "set-validation-00-of-01"):
        write_tar(tmp_path / "names" / f"{name}.tar", samples)
        split, number = name.split("-")[1:3]
        write_tar(tmp_path / "folders" / split / f"{number}.tar", samples)
    listed = {
        "a": {"filenames": ["set-train-01-of-02.tar"]},
        "b": {"filenames": ["set-validation-00-of-01.tar"]},
    }
    for folder in ("names", "folders"):
        sources = open_sources(f"wds:{tmp_path / folder}", cache=cache)
        assert [len(source) for source in sources] == [42, 21]
        assert sources[0].class_names == ["0", "1", "2"]  # No file has their names.
    (tmp_path / "names/_info.json").write_text(json.dumps({"splits": listed}))
    sources = open_sources(
        f"wds:{tmp_path / 'names'}", train_split="a", eval_split="b", cache=cache
    )
    assert [len(source) for source in sources] == [21, 21]


def _open(tmp_path, labels, class_names=None, suffix="cls"):
    image = b"an image"
    samples = [
        (f"{i}", {"jpg": image} | ({} if label is None else {suffix: label.encode()}))
        for i, label in enumerate(labels)
    ]
    write_tar(tmp_path / "train-0.tar", samples)
    return open_eval_source(
        f"wds:{tmp_path}/train-0.tar",
        class_names=class_names,
        cache=ShardCache(str(tmp_path / "c")),
    )


@pytest.mark.parametrize(
    ("labels", "suffix", "names", "expected"),
    [
        (["2", "0\n", None, "-1"], "cls", ["0", "1", "2"], [2, 0, -1, -1]),
        (["dog", "cat", "dog"], "cls", ["cat", "dog"], [1, 0, 1]),
        (["1 2", "0", "[]"], "cls", ["0", "1", "2"], [[0, 1, 1], [1, 0, 0], [0, 0, 0]]),
        (['{"label": 1, "x": 5}', "{}"], "json", ["0", "1"], [1, -1]),
        (['{"label": ["b", "a"]}', '{"label": "b"}'], "json", ["a", "b"], [[1, 1], [0, 1]]),
    ],
)
def test_labels(labels, suffix, names, expected, tmp_path):
    source = _open(tmp_path, labels, suffix=suffix)
    assert source.class_names == names
    assert source.multi_label == isinstance(expected[0], list)
    assert [np.asarray(source[i][1]).tolist() for i in range(len(source))] == expected


def test_labels_that_do_not_fit(tmp_path):
    for labels, names, words in (
        (["cat", "cow"], ["cat", "dog"], "labels that are none of its 2 classes: cow"),
        (["5", "1"], ["cat", "dog"], "labels that are none of its 2 classes: 5"),
        ([None, None], None, "has no labels; a sample's is a number in KEY.cls"),
        (['[1, "a"]'], None, "numbers and texts as labels, such as 'a', 1"),
    ):
        with pytest.raises(InputError, match=words):
            _open(tmp_path, labels, names)
    source = _open(tmp_path, ["1", "0"])
    for content, words in (
        ('["x", "y"]', None),
        ('{"0": "x", "1": "y"}', None),
        ('{"x": 0, "y": 1}', None),
        ('{"x": 0, "y": 5}', "must have the names of the classes"),
        ("[", "is no valid JSON"),
    ):
        (tmp_path / "classes.json").write_text(content)
        if words is None:
            assert _open(tmp_path, ["1", "0"]).class_names == ["x", "y"]
        else:
            with pytest.raises(InputError, match=words):
                _open(tmp_path, ["1", "0"])
    assert source.class_names == ["0", "1"]


def test_bad_shards(shards, cache, tmp_path):
    whole = (shards / "train-0000.tar").read_bytes()
    with tarfile.open(shards / "train-0000.tar") as tar:
        second = tar.getmembers()[1].offset
    header = bytearray(whole)
    header[second + 20] ^= 1
    for content, words in (
        (whole[:2000], r"bad\.tar is truncated: it has 2,000 bytes and ant/.*png in it"),
        (bytes(header), rf"bad\.tar is corrupt at byte {second:,}"),
        (b"text" * 1000, r"bad\.tar is no tar file"),
        (b"", r"bad\.tar is empty"),
        (b"\x1f\x8b0", r"bad\.tar is compressed"),
        (bytes(10240), r"bad\.tar holds no images; a sample is KEY\.jpg and KEY"),
    ):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(InputError, match=words):
            open_eval_source(f"wds:{tmp_path}/bad.tar", cache=cache)
    # What is cut off after its index was read is a corrupt image, as a file that is gone.
    (tmp_path / "bad.tar").write_bytes(whole)
    source = open_eval_source(f"wds:{tmp_path}/bad.tar", cache=cache)
    (tmp_path / "bad.tar").write_bytes(whole[:3000])
    with pytest.raises(InputError, match=r"bad\.tar cannot be read: the file ends .* too early"):
        source[len(source) - 1]
