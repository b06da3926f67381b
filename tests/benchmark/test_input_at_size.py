"""Sets of shrunk images in the input benchmark."""

import pathlib

import numpy as np
import pytest

from noah_jax.benchmark import input_at_size
from noah_jax.benchmark.input_at_size import at_size_contenders, crop_difference
from noah_jax.benchmark.input_contenders import CNN, DEIT, Setting
from noah_jax.benchmark.photographs import make_photograph, write_class_folder
from noah_jax.data.decoding import decode
from noah_jax.data.shrunk import Shrinking
from noah_jax.data.sources import open_sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("photographs")
    write_class_folder(root, files=8, different=2, size=(240, 180))
    return root


def test_each_set_is_prepared_and_read(folder, capsys, monkeypatch):
    monkeypatch.setattr(
        input_at_size, "_SETS", (Shrinking(160), Shrinking(400), Shrinking(raw=True))
    )
    source, _ = open_sources(f"folder:{folder}")
    setting = Setting(DEIT, folder, source, batch=4, cores=1)
    contenders = at_size_contenders(setting)
    assert list(contenders) == [
        "noah_jax, 160 px, quality 95, augment_on_device",
        "noah_jax, raw, augment_on_device",
    ]
    for batches in contenders.values():
        assert next(batches)["image"].shape == (4, 224, 224, 3)
        batches.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "no image has more than 400 px: such a set would be the same"
    assert lines[1].startswith("160 px, quality 95: ") and "-> " in lines[1]
    assert lines[2].startswith("raw: ") and "differ by 0.00 levels" in lines[2]


def test_crops_of_smaller_images_are_the_same_part(folder):
    source, _ = open_sources(f"folder:{folder}")
    differences = [
        crop_difference(source, Shrinking(side), CNN.transform, images=2) for side in (230, 120)
    ]
    assert differences[0].shape == (2, 224, 224, 3)
    assert 0 < differences[0].mean() < differences[1].mean() < 25
    assert np.percentile(differences[0], 50) < 10


def test_photographs_of_another_size_have_as_many_bytes_a_pixel():
    data = make_photograph(0, (250, 188))
    assert decode(data).shape == (188, 250, 3) and 27_000 < len(data) < 36_000
