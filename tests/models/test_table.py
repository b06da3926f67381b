"""The table of models and what it is made of."""

import pytest

from noah_jax import create_model, list_models
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
