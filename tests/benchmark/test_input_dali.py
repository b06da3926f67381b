"""DALI in the input benchmark: left out in one line, or measured on its CPU backend."""

import importlib.util
import re

import pytest

from noah_jax.benchmark.input_contenders import CNN, DEIT, Setting
from noah_jax.benchmark.input_dali import dali_contenders
from noah_jax.benchmark.photographs import write_class_folder
from noah_jax.data.sources import open_sources


def test_without_dali_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert dali_contenders(Setting(CNN, None, None, 4, 1)) == {}
    assert capsys.readouterr().out.count("NVIDIA DALI is not installed") == 1


@pytest.mark.parametrize(
    ("recipe", "names"),
    [(CNN, ["noah_jax, loader=dali (CPU)", "DALI, CPU"]), (DEIT, ["noah_jax, loader=dali (CPU)"])],
)
def test_dali_makes_batches(recipe, names, tmp_path, capsys):
    pytest.importorskip("nvidia.dali")
    write_class_folder(tmp_path, files=8, different=2)
    source, _ = open_sources(f"folder:{tmp_path}")
    contenders = dali_contenders(Setting(recipe, tmp_path, source, 4, 1))
    assert list(contenders) == names
    own, *plain = contenders.values()
    assert next(own)["image"].shape == (4, 224, 224, 3)
    for batches in plain:
        images, _ = next(batches)
        assert images.as_tensor().shape() == [4, 224, 224, 3]
    line = re.search(r"by (\S+) levels of 255 in the mean, (\d) at", capsys.readouterr().out)
    assert 0 < float(line[1]) < 0.3 and int(line[2]) <= 2
