"""COCO and PASCAL VOC, prepared as datasets of TFDS."""

import numpy as np
import pytest

from noah_jax.data import prepare
from noah_jax.data.prepare_labelled import plan_coco, plan_voc
from noah_jax.data.sources import open_sources
from noah_jax.errors import InputError
from tests.helpers import write_coco, write_voc


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare, "IMAGES_PER_SHARD", 4)


@pytest.fixture
def coco(tmp_path):
    write_coco(tmp_path / "coco")
    return str(tmp_path / "coco")


def _assert_same(prepared, listed):
    for actual, expected in zip(prepared, listed, strict=True):
        assert actual.class_names == expected.class_names and len(actual) == len(expected)
        for i in range(len(expected)):
            assert actual[i][0] == expected[i][0]
            np.testing.assert_array_equal(actual[i][1], expected[i][1])
            assert actual.file_name(i) == expected.file_name(i)


def test_coco(coco, tmp_path):
    folder = prepare.prepare(*plan_coco(coco), str(tmp_path))
    assert folder == tmp_path / "coco2017/1.0.0"
    listed = open_sources(f"coco:{coco}")
    _assert_same(open_sources("coco2017", data_dir=str(tmp_path)), listed)
    # An unfinished dataset is gone on with; what there was already is not written again.
    shards = sorted(folder.glob("*train.array_record*"))
    contents = [shard.read_bytes() for shard in shards]
    partial = folder.with_name(".1.0.0.partial")
    folder.rename(partial)
    (partial / shards[1].name).unlink()
    kept = (partial / shards[0].name).stat().st_mtime_ns
    assert prepare.prepare(*plan_coco(coco), str(tmp_path)) == folder
    assert len(shards) == 3 and [shard.read_bytes() for shard in shards] == contents
    assert shards[0].stat().st_mtime_ns == kept


def test_other_labels_are_other_data(coco, tmp_path):
    def origins():
        return [split.origin for split in plan_coco(coco)[1]]

    before = origins()
    assert before == origins()
    file = tmp_path / "coco/annotations/instances_train2017.json"
    file.write_text(file.read_text().replace('"category_id": 90', '"category_id": 3'))
    # `prepare` does not go on with shards of another origin.
    assert origins()[0] != before[0] and origins()[1] == before[1]


def test_a_year_of_several(coco, tmp_path):
    write_coco(tmp_path / "coco", "2014")
    with pytest.raises(InputError, match=r"YEAR\.json; choose of 2014, 2017 with --year"):
        plan_coco(coco)
    with pytest.raises(InputError, match=r"instances_train2015\.json; choose of 2014, 2017"):
        plan_coco(coco, year="2015")
    info, splits = plan_coco(coco, year="2014")
    assert info.full_name == "coco2014/1.0.0"
    assert [(split.name, split.num_images) for split in splits] == [("train", 9), ("val", 6)]
    (tmp_path / "coco/annotations/instances_val2014.json").unlink()
    assert [split.name for split in plan_coco(coco, year="2014")[1]] == ["train"]
    with pytest.raises(InputError, match="'My-COCO' is no name for a dataset"):
        plan_coco(coco, year="2014", name="My-COCO")


def test_voc(tmp_path):
    write_voc(tmp_path / "VOCdevkit/VOC2007")
    root = str(tmp_path / "VOCdevkit")
    folder = prepare.prepare(*plan_voc(root), str(tmp_path))
    assert folder == tmp_path / "voc2007/1.0.0"
    splits = {"train_split": "trainval", "eval_split": "test"}
    prepared = open_sources("voc2007", data_dir=str(tmp_path), **splits)
    _assert_same(prepared, open_sources(f"voc:{root}", **splits))
    assert prepared[0][1][1].tolist() == [-1, 1]  # what is ignored is ignored
    # A year whose test has no labels.
    main = tmp_path / "VOCdevkit/VOC2007/ImageSets/Main"
    for file in list(main.glob("*_t*.txt")):
        new = "train" if file.stem.endswith("trainval") else "val"
        file.rename(main / f"{file.stem.rpartition('_')[0]}_{new}.txt")
    assert [split.name for split in plan_voc(root)[1]] == ["train", "val"]
    for file in main.glob("*_val.txt"):
        file.unlink()
    with pytest.raises(InputError, match=r"or of train and val; it has train$"):
        plan_voc(root)
