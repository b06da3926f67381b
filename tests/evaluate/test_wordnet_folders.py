"""Evaluates on folders that are named by WordNet ids, all classes or a part of them."""

import json
import pathlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from etils import epath
from PIL import Image

from noah_jax.errors import InputError, UsageError
from noah_jax.evaluate.__main__ import main
from noah_jax.evaluation.wordnet_folders import open_wordnet_folders, wordnet_ids
from tests.evaluate.conftest import WORDNET_IDS, copy_images, logits_of


def _trained(class_names=None, num_classes=1000, multi_label=False) -> Any:
    return SimpleNamespace(
        path="runs/model",
        class_names=class_names,
        model=SimpleNamespace(num_classes=num_classes),
        multi_label=multi_label,
        split=None,
    )


def _write(root: pathlib.Path, *folders: str) -> epath.Path:
    for name in folders:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name / "0.png")
    return epath.Path(root)


def test_predictions_are_among_the_classes_that_are_there(
    wordnet_run, class_folders, tmp_path, capsys
):
    copy_images(class_folders, tmp_path / "some", {0: WORDNET_IDS[0], 2: WORDNET_IDS[2]})
    arguments = ["--checkpoint", wordnet_run, "--classes-of", "imagenet", "--resize", "28"]
    folder = ["--dataset", f"folder:{tmp_path / 'some'}"]
    assert main([*arguments, *folder, "--json", "--calibration"]) == 0
    said = capsys.readouterr()
    row = json.loads(said.out)
    files = [tmp_path / "some" / WORDNET_IDS[k] / f"{i:02}.png" for k in (0, 2) for i in range(7)]
    logits, labels = logits_of(wordnet_run, files).astype(np.float64), np.repeat((0, 2), 7)
    among = np.where(logits[:, 0] > logits[:, 2], 0, 2)
    assert row["top1"] == pytest.approx(100 * (among == labels).mean(), abs=1e-9)
    assert row["top1_of_all"] == pytest.approx(100 * (logits.argmax(-1) == labels).mean(), abs=1e-9)
    own = logits[np.arange(14), labels]
    loss = np.log(np.exp(logits[:, [0, 2]]).sum(-1)) - own
    assert row["loss"] == pytest.approx(loss.mean(), rel=1e-4)
    assert row["calibration"]["nll"] == pytest.approx(row["loss"], rel=1e-5)
    assert (row["classes"], row["examples"]) == (2, 14)
    assert "has 2 of the model's 3 classes: predictions and loss are restricted" in said.err

    assert main([*arguments, *folder]) == 0
    assert "top-1 of all" in capsys.readouterr().out

    # A whole set is evaluated as without the option.
    copy_images(class_folders, tmp_path / "all", dict(enumerate(WORDNET_IDS)))
    whole = ["--dataset", f"folder:{tmp_path / 'all'}", "--json"]
    assert main([*arguments, *whole]) == 0
    said = capsys.readouterr()
    assert "has all 3 classes" in said.err
    assert main(["--checkpoint", wordnet_run, "--resize", "28", *whole]) == 0
    assert json.loads(said.out) == json.loads(capsys.readouterr().out)


def test_the_classes_of_imagenet(tmp_path, capsys):
    ids = wordnet_ids(_trained())
    assert (len(ids), ids[0], ids[-1]) == (1000, "n01440764", "n15075141")
    assert wordnet_ids(_trained(["tench"] * 1000)) == ids
    assert (
        "the first is tench: they are taken for ImageNet's, in its order" in capsys.readouterr().err
    )
    assert wordnet_ids(_trained(WORDNET_IDS, 3)) == list(WORDNET_IDS)
    source, classes = open_wordnet_folders(_write(tmp_path / "a", ids[7], ids[999]), _trained())
    assert classes == (7, 999) and [source[i][1] for i in range(2)] == [7, 999]
    # ImageNet-V2 has numbers, which do not sort as such.
    source, classes = open_wordnet_folders(_write(tmp_path / "v2", "10", "2"), _trained())
    assert classes == (2, 10) and [source[i][1] for i in range(2)] == [10, 2]
    source, _ = open_wordnet_folders(_write(tmp_path / "b", f"test/{ids[1]}"), _trained())
    assert source.describe(0) == f"{tmp_path}/b/test/{ids[1]}/0.png"


def test_what_does_not_fit_is_one_line(tmp_path):
    folder = _write(tmp_path, "n01440764", "n01443536")
    with pytest.raises(InputError, match=r"holds n01443536; .* did you mean n0144353[67]\?"):
        open_wordnet_folders(folder, _trained())
    with pytest.raises(InputError, match="has 3 classes, the first is ant"):
        open_wordnet_folders(folder, _trained(["ant", "bee", "cat"], 3))
    with pytest.raises(InputError, match="has no split 'val'; it has n01440764"):
        open_wordnet_folders(folder, _trained(), "val")
    with pytest.raises(UsageError, match="was trained for several"):
        open_wordnet_folders(folder, _trained(multi_label=True))


def test_options_that_exclude_each_other(capsys):
    for words, message in (
        ([], "reads class folders: --dataset folder:PATH"),
        (["--dataset", "fashion_mnist_sample"], "reads class folders"),
        (["--labels", "a.csv"], "--labels replaces the labels"),
    ):
        assert main(["--checkpoint", "a", "--classes-of", "imagenet", *words]) == 1
        assert message in capsys.readouterr().err
