"""Tests the paired test against SciPy and direct resampling, and as a user runs it."""

import csv
import io
import json
import math
import pathlib
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from noah_jax.errors import ReadError
from noah_jax.evaluate.__main__ import main
from noah_jax.evaluate.predictions import read_predictions
from noah_jax.evaluation.paired import mcnemar, paired_test


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (0, 7), (5, 5), (12, 30), (1210, 1100)])
def test_mcnemar_is_the_binomial_test(counts):
    p, mid_p = mcnemar(*counts)
    if not any(counts):
        assert (p, mid_p) == (1.0, 1.0)
        return
    assert p == pytest.approx(binomtest(counts[0], sum(counts)).pvalue)
    # The mid-p value counts the outcome itself half, on both sides.
    fewer, number = min(counts), sum(counts)
    below = sum(math.comb(number, k) for k in range(fewer))
    expected = Fraction(2 * below + math.comb(number, fewer), 2**number)
    assert mid_p == pytest.approx(float(expected))


def test_the_mid_p_value_by_hand():
    # Of 5 images, 4 to 1: outcomes 0 and 1 have the probabilities 1/32 and 5/32.
    p, mid_p = mcnemar(4, 1)
    assert p == pytest.approx(2 * 6 / 32) and mid_p == pytest.approx(2 * (1 / 32 + 5 / 64))


def test_the_interval_is_that_of_drawn_images():
    random = np.random.default_rng(0)
    a, b = random.random(300) < 0.8, random.random(300) < 0.7
    test = paired_test(a, b)
    assert test.images == 300 == test.both + test.neither + test.only_a + test.only_b
    assert test.difference == pytest.approx(100 * (a.mean() - b.mean()))
    drawn = random.integers(0, 300, (4000, 300))
    differences = 100 * (a[drawn].mean(-1) - b[drawn].mean(-1))
    assert test.interval == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.6)
    assert paired_test(a, b) == test and paired_test(b, a).p == test.p
    assert paired_test(a, a).interval == (0.0, 0.0)


def test_a_user_compares_checkpoints_and_files(tiny_run, tmp_path, capsys):
    first, last = (f"{tiny_run}/checkpoints/{step}" for step in (6, 12))
    saved = [str(tmp_path / f"{name}.csv") for name in "ab"]
    for checkpoint, file in zip((first, last), saved, strict=True):
        assert main(["--checkpoint", checkpoint, "--predictions", file, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tables = [list(csv.DictReader(io.StringIO(pathlib.Path(file).read_text()))) for file in saved]
    first_line = tables[0][0]
    assert len(tables[0]) == 21
    assert (first_line["file"], first_line["label"]) == ("val/ant/00.png", "ant")
    right = [np.array([line["label"] == line["predicted"] for line in table]) for table in tables]
    assert [100 * r.mean() for r in right] == pytest.approx([row["top1"] for row in rows])
    assert all(1 / 3 < float(line["probability"]) <= 1 for line in tables[0])

    expected = paired_test(*right).to_json()
    for a, b in ((first, last), saved, (first, saved[1])):
        assert main(["--checkpoint", a, "--against", b, "--json"]) == 0
        *_, measured = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert measured == {"a": a, "b": b, **expected}
    assert main(["--checkpoint", saved[0], "--against", saved[1]]) == 0
    a, b, counts, difference, mcnemar_line = capsys.readouterr().out.splitlines()
    assert a.startswith(f"A {saved[0]} {rows[0]['top1']:.2f}% of 21 images")
    assert f"only A {expected['only_a']}, only B {expected['only_b']}" in counts
    assert f"{expected['difference']:+.2f} points, 95 % interval" in difference
    assert mcnemar_line.startswith(f"McNemar: exact p = {expected['p_exact']:.3g}")


def test_what_does_not_fit_is_one_line(tiny_run, tmp_path, capsys):
    good = tmp_path / "good.csv"
    head = "file,label,predicted,probability\n"
    good.write_text(f"{head}a,x,x,0.5\nb,x,y,0.5\n")

    def fails(*words: object) -> str:
        assert main(list(map(str, words))) == 1
        return capsys.readouterr().err

    for text, words in (
        (f"{head}a,x,x,0.5\n", "was evaluated on 2 images and"),
        (f"{head}a,x,x,0.5\nc,x,y,0.5\n", "has the image b where"),
        (f"{head}a,x,x,0.5\nb,y,y,0.5\n", "has the label x of b where"),
    ):
        (tmp_path / "other.csv").write_text(text)
        assert words in fails("--checkpoint", good, "--against", tmp_path / "other.csv")
    for text in ("", head, "file,label\na,x\n"):
        good.write_text(text)
        with pytest.raises(ReadError, match="write it with --predictions"):
            read_predictions(str(good))
    good.write_text(f"{head}a,x,x,high\n")
    with pytest.raises(ReadError, match="line 2, holds no prediction"):
        read_predictions(str(good))
    assert "which only --against takes" in fails("--checkpoint", good)
    run = f"{tiny_run}/checkpoints"
    assert "holds 2 checkpoints; name one" in fails("--checkpoint", tiny_run, "--against", run)
    assert "--checkpoint names 2" in fails("--checkpoint", "a", "b", "--against", "c")
    assert "is for one checkpoint" in fails("--checkpoint", run, "--predictions", good)
