"""Tests the calibration on numbers worked out by hand, and as a user measures it."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from noah_jax.errors import InputError
from noah_jax.evaluate.__main__ import main
from noah_jax.evaluation import calibration as module
from noah_jax.evaluation.calibration import HIGHEST, LOWEST, calibrate, fit_temperature, score


def _pairs(*probabilities: float) -> np.ndarray:
    """Logits of two classes, the first of which has these probabilities."""
    return np.log([[p, 1 - p] for p in probabilities]).astype(np.float32)


def test_scores_by_hand():
    # Two images at 0.9, one of them right; two at 0.7, both right.
    logits, labels = _pairs(0.9, 0.9, 0.3, 0.7), np.array([0, 1, 1, 0])
    scores = score(logits, labels)
    assert scores.ece == pytest.approx((2 * abs(0.5 - 0.9) + 2 * abs(1 - 0.7)) / 4, abs=1e-6)
    assert scores.brier == pytest.approx((0.02 + 1.62 + 0.18 + 0.18) / 4, abs=1e-6)
    nll = -(math.log(0.9) + math.log(0.1) + 2 * math.log(0.7)) / 4
    assert scores.nll == pytest.approx(nll, abs=1e-6)
    assert scores.counts.tolist() == [0] * 10 + [2, 0, 0, 2, 0]
    assert scores.bins()[13] == {
        "above": pytest.approx(13 / 15),
        "images": 2,
        "confidence": pytest.approx(0.9, abs=1e-6),
        "accuracy": 0.5,
    }
    assert scores.bins()[0]["confidence"] is None
    # A certain prediction is in the last bin, and three equal classes share the probability.
    sure = score(np.array([[99.0, -99.0, -99.0], [0, 0, 0]], np.float32), np.array([0, 2]))
    assert sure.counts[-1] == 1 and sure.nll == pytest.approx(math.log(3) / 2)
    assert sure.brier == pytest.approx((2 / 3) / 2)


def test_a_perfectly_calibrated_model_has_no_error():
    logits = _pairs(*[0.75] * 8)
    assert score(logits, np.array([0] * 6 + [1] * 2)).ece == pytest.approx(0, abs=1e-6)


def test_the_temperature_in_closed_form(monkeypatch):
    # All logits differ by 4, and 3 of 4 images are right: 4 / T must be the log odds of 3.
    logits, labels = np.tile(np.float32([4, 0]), (400, 1)), np.arange(400) % 4 // 3
    expected = 4 / math.log(3)
    assert fit_temperature(logits, labels, np.arange(400)) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(module, "_CHUNK", 7)  # does not divide the images
    assert fit_temperature(logits, labels, np.arange(400)) == pytest.approx(expected, rel=1e-5)
    scores = score(logits, labels, temperature=expected)
    assert scores.ece == pytest.approx(0, abs=1e-5) and scores.counts.sum() == 400
    half = np.arange(0, 400, 4)  # only images that are right
    assert fit_temperature(logits, labels, half) == LOWEST
    assert fit_temperature(logits, 1 - labels, half) == HIGHEST


def test_one_half_fits_and_the_other_measures():
    random = np.random.default_rng(1)
    logits = random.normal(0, 3, (2001, 5)).astype(np.float32)
    labels = (logits + random.gumbel(size=logits.shape)).argmax(-1)  # drawn from the softmax
    measured = calibrate(2.5 * logits, labels)
    assert measured.temperature == pytest.approx(2.5, rel=0.1)
    assert (measured.fitted_on, measured.before.counts.sum()) == (1000, 1001)
    assert measured.after.nll < measured.before.nll and measured.after.ece < measured.before.ece
    assert calibrate(2.5 * logits, labels).to_json() == measured.to_json()
    # The halves do not depend on the labels or logits.
    order = np.random.default_rng(module.SPLIT_SEED).permutation(2001)[1000:]
    other = score(2.5 * logits[order], labels[order])
    assert measured.before.nll == pytest.approx(other.nll)
    for bad, words in ((logits[:1], "at least two images"), (logits * np.nan, "finite logits")):
        with pytest.raises(InputError, match=words):
            calibrate(bad, labels[: len(bad)])


def test_a_user_measures_it(tiny_run, tmp_path, capsys):
    report = tmp_path / "report"
    command = ["--checkpoint", tiny_run, "--calibration"]
    assert main([*command, "--json", "--report", str(report)]) == 0
    row = json.loads(capsys.readouterr().out)
    measured = row["calibration"]
    assert measured["nll"] == pytest.approx(row["loss"], rel=1e-5)
    assert (measured["fitted_on"], measured["measured_on"]) == (10, 11)
    assert sum(bin["images"] for bin in measured["bins"]) == 21
    assert json.loads((report / "report.json").read_text())["calibration"] == measured
    with Image.open(report / "reliability.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(2**20) or ()) > 20
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"15 bins: ECE {100 * measured['ece']:.2f}%" in lines[2]
    assert f"temperature {measured['temperature']:.4g}, fitted on 10 images" in lines[3]


def test_several_labels_are_refused(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "loss": "sigmoid"}))
    for option, value in (("calibration", ()), ("predictions", ["a.csv"]), ("against", [str(run)])):
        assert main(["--checkpoint", str(run), f"--{option}", *value]) == 1
        assert f"--{option} is for one label an image, and" in capsys.readouterr().err
