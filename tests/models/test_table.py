"""The table of models and what it is made of."""

import pytest

from noah_jax import create_model, list_models
from noah_jax.heads.registry import HEADS
from noah_jax.models.__main__ import main
from noah_jax.models.flops import multiply_adds
from noah_jax.models.published import published


def test_table(capsys):
    assert main(["*resnet18"]) == 0
    header, noah, linear = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "parameters/M", "FLOPs/G", "top-1", "source", "N", "r"]
    assert " ".join(noah.split()) == "noah_resnet18 11.697 1.839 71.81 NOAH README 4 1/2"
    assert " ".join(linear.split()) == "resnet18 11.690 1.814 70.25 NOAH README - -"
    assert main(["*resnet18", "--head", "csra"]) == 0
    _, csra = capsys.readouterr().out.splitlines()
    # A class's score at each of 7 x 7 positions, and no bias.
    assert " ".join(csra.split()) == "resnet18 11.689 1.839 - - - -"
    assert main(["noah_resmlp_12_dist*"]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split()[3:5] == ["-", "-"]


def test_heads_of_a_backbone(capsys):
    assert main(["*resnet18", "--heads"]) == 0
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[:2] == ["backbone", "head"] and [row[1] for row in rows] == list(HEADS)
    by_head = {row[1]: [float(figure) for figure in row[2:]] for row in rows}
    assert by_head["linear"] == [11.6895, 0.5130, 1.8141, 0.0005]
    assert by_head["noah"][1] == 0.5200
    # The decoder's 512 x 768 and 4 of 768 x 768 channels, the perceptron, the queries: by hand.
    positions, queries, width = 49, 100, 768
    expected = positions * width * (512 + 2 * width) + queries * width * 2 * (width + positions)
    expected += queries * width * 2 * 2048 + width * 1000
    assert by_head["ml_decoder"][3] == pytest.approx(expected / 1e9, abs=1e-4)
    for figures in by_head.values():
        assert figures[0] - figures[1] == pytest.approx(11.1765, abs=2e-4)
    assert main(["resnet18", "--heads", "csra", "nohead"]) == 1
    assert "head must be" in capsys.readouterr().err


def test_unknown_pattern(capsys):
    assert main(["resnext*"]) == 1
    assert "no model matches 'resnext*'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "billions"),
    # As torchvision's and timm's documentation have them, to their last digit or two.
    [
        ("resnet50", 4.09),
        ("mobilenetv2_100", 0.30),
        ("shufflenetv2_100", 0.14),
        ("deit_tiny_patch16_224", 1.26),
        ("pvt_tiny", 1.94),
        ("mixer_s32_224", 1.00),
        ("resmlp_12_224", 3.01),
    ],
)
def test_multiply_adds_are_the_published_ones(name, billions):
    assert multiply_adds(create_model(name)) / 1e9 == pytest.approx(billions, abs=0.0099)


def test_published_models_are_registered_in_pairs():
    rows = published()
    assert len(rows) == 52 and rows.keys() <= set(list_models())
    for name, row in rows.items():
        if not name.startswith("noah_"):
            assert rows[f"noah_{name}"].top1 > row.top1
