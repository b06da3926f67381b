"""Evaluates a made ImageNet-C of two tiny images a set; checks mCE by the published averages."""

import json
import pathlib
import shutil
from typing import NamedTuple

import numpy as np
import pytest
from etils import epath
from PIL import Image

from noah_jax.evaluate.__main__ import main
from noah_jax.evaluation.corruptions import (
    ALEXNET,
    EXTRA,
    SEVERITIES,
    STANDARD,
    CorruptionErrors,
    find_corruptions,
    mean_alexnet,
)
from tests.evaluate.conftest import WORDNET_IDS, logits_of

# The column "Average" of the authors' table; the package has the severities.
AVERAGES = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
    "speckle_noise": 0.845388,
    "gaussian_blur": 0.787108,
    "spatter": 0.717512,
    "saturate": 0.658248,
}


class _Made(NamedTuple):
    """A made ImageNet-C: its folder, and the error of the model on each set."""

    root: pathlib.Path
    errors: dict[str, list[float]]


@pytest.fixture(scope="module")
def made(wordnet_run, tmp_path_factory) -> _Made:
    root, random = tmp_path_factory.mktemp("imagenet") / "c", np.random.default_rng(0)
    files, labels = [], []
    for name in ALEXNET:
        for severity in SEVERITIES:
            for index, wordnet_id in enumerate(WORDNET_IDS[:2]):
                folder = root / name / str(severity) / wordnet_id
                folder.mkdir(parents=True)
                pixels = random.integers(0, 150, (28, 28, 3), np.uint8)
                pixels[..., random.integers(3)] += 60
                Image.fromarray(pixels).save(folder / "0.png")
                files.append(folder / "0.png")
                labels.append(index)
    wrong = logits_of(wordnet_run, files).argmax(-1) != np.array(labels)
    errors = wrong.reshape(len(ALEXNET), len(SEVERITIES), 2).mean(-1)
    return _Made(root, dict(zip(ALEXNET, errors.tolist(), strict=True)))


def test_alexnets_errors_average_as_published():
    assert len(STANDARD) == 15 and len(EXTRA) == 4
    for name, average in AVERAGES.items():
        assert mean_alexnet(name) == pytest.approx(average, abs=1e-9)
    alexnet = CorruptionErrors(
        {n: dict(zip(SEVERITIES, e, strict=True)) for n, e in ALEXNET.items()}
    )
    assert alexnet.mce == pytest.approx(1) and alexnet.missing() == []


def test_every_set_is_evaluated(wordnet_run, made, tmp_path, capsys):
    command = ["--checkpoint", wordnet_run, "--dataset", f"folder:{made.root}"]
    command += ["--classes-of", "imagenet"]
    assert main([*command, "--json", "--report", str(tmp_path / "report")]) == 0
    said = capsys.readouterr()
    row = json.loads(said.out)
    for name, errors in made.errors.items():
        assert row["corruptions"][name]["errors"] == pytest.approx(100 * np.array(errors))
        ce = 100 * np.mean(errors) / AVERAGES[name]
        assert row["corruptions"][name]["ce"] == pytest.approx(ce)
    standard = [np.mean(made.errors[name]) / AVERAGES[name] for name in STANDARD]
    assert row["mce"] == pytest.approx(100 * np.mean(standard))
    mean = np.mean([made.errors[name] for name in STANDARD])
    assert row["mean_error"] == pytest.approx(100 * mean)
    assert (row["missing"], row["examples"], row["classes"]) == ([], 190, 2)
    # The run enlarges images to 32 pixels, which ImageNet-C's are not meant for.
    assert row["preprocessing"]["resize"] is None and "resize cover (ImageNet-C)" in said.err
    assert "CE and mCE do not compare with published ones" in said.err
    assert json.loads((tmp_path / "report/report.json").read_text()) == row
    lines = (tmp_path / "report/corruptions.csv").read_text().splitlines()
    assert len(lines) == 20 and lines[1].startswith("gaussian_noise,True,")


def test_without_some_sets_there_is_no_mce(wordnet_run, made, tmp_path, capsys):
    # As the archives unpack, and a file that cannot be decoded.
    shutil.copytree(made.root / "fog", tmp_path / "weather/fog")
    shutil.copytree(made.root / "spatter/2", tmp_path / "extra/spatter/2")
    shutil.copytree(made.root / "spatter/3", tmp_path / "extra/spatter/3")
    shutil.rmtree(tmp_path / "weather/fog/4")
    (tmp_path / f"extra/spatter/2/{WORDNET_IDS[0]}/1.png").write_bytes(b"damaged")
    command = ["--checkpoint", wordnet_run, "--dataset", f"folder:{tmp_path}"]
    command += ["--classes-of", "imagenet", "--resize", "28"]
    assert main(command) == 0
    said = capsys.readouterr()
    _, head, fog, no_mce, apart, spatter = said.out.splitlines()
    first = made.errors["fog"][0]
    assert fog.split()[:2] == ["fog", f"{100 * first:.2f}%"] and fog.split()[4] == "none"
    assert fog.split()[6:] == ["none", "81.93%", "none"] and head.split()[-1] == "CE"
    assert no_mce.startswith("no mCE, which needs all 15 x 5 sets: lacks gaussian_noise, ")
    assert "not in mCE" in apart and spatter.startswith("spatter")
    assert "spatter/2/n01440764/1.png" in said.err and "resize 28 (given)" in said.err
    assert CorruptionErrors({"fog": dict.fromkeys((1, 2, 3, 5), 0.5)}).missing({"fog": ()}) == [
        "fog/4"
    ]
    for option in (["--calibration"], ["--against", wordnet_run], ["--real-labels", "a.json"]):
        assert main([*command, *option]) == 1
        assert f"{option[0]} does not fit ImageNet-C" in capsys.readouterr().err


def test_a_set_that_cannot_be_evaluated_does_not_end_the_others(
    wordnet_run, made, tmp_path, capsys
):
    shutil.copytree(made.root / "snow", tmp_path / "snow")
    (tmp_path / "snow/2/n99999999").mkdir()
    for wordnet_id in WORDNET_IDS[:2]:
        (tmp_path / "snow/4" / wordnet_id / "0.png").unlink()
    command = ["--checkpoint", wordnet_run, "--dataset", f"folder:{tmp_path}", "--json"]
    assert main([*command, "--classes-of", "imagenet"]) == 1
    said = capsys.readouterr()
    errors = json.loads(said.out)["corruptions"]["snow"]["errors"]
    expected = [100 * error for error in made.errors["snow"]]
    assert errors == [expected[0], None, expected[2], None, expected[4]]
    assert "snow/2 is left out: " in said.err and "holds n99999999" in said.err
    assert f"2 of the sets in {tmp_path} are left out (snow/2, snow/4), see above" in said.err


def test_folders_of_other_names_are_no_corruptions(tmp_path):
    for name in ("n01440764", "noise/n01440764", "1", "fog/train"):
        (tmp_path / name).mkdir(parents=True)
    assert find_corruptions(epath.Path(tmp_path)) == {}
