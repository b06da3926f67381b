"""The parity program, which checks the models against the original's golden vectors."""

import dataclasses
import json

import numpy as np
import pytest

from noah_jax.parity.__main__ import main as parity
from noah_jax.parity.training import Comparison

# The smallest member of every family, and of every kind in the MLP family.
MEMBERS = [
    "noah_mobilenetv2_035",
    "noah_mobilenetv3_small",
    "noah_shufflenetv2_050",
    "noah_deit_tiny_050_patch16_224",
    "noah_pvt_tiny_050",
    "noah_mixer_s32_224",
    "noah_gmixer_12_224",
    "noah_resmlp_12_224",
    "noah_gmlp_ti16_050_224",
]
TOKEN_MEMBERS = ["resnet18", "mobilenetv3_small", "deit_tiny_050_patch16_224", "pvt_tiny_050"]


@pytest.mark.parametrize("name", ["noah_resnet18", *MEMBERS, *TOKEN_MEMBERS])
def test_logits(name, golden, capsys):
    assert parity(["--golden", str(golden), "--models", name]) == 0
    assert "1 of 1 agree" in capsys.readouterr().out


@pytest.mark.slow
def test_all_logits(golden, capsys):
    assert parity(["--golden", str(golden)]) == 0
    assert "112 of 112 agree" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["noah_resmlp_12_224", pytest.param("noah_shufflenetv2_050", marks=pytest.mark.slow)],
)
def test_training(name, golden, capsys):
    arguments = ["--golden", str(golden), "--train"]
    assert parity([*arguments, "--models", name]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 agree" in out
    for quantity in ("first loss", "loss", "grad_norm", "grad", "change"):
        assert f" {quantity} " in out


@pytest.mark.slow
def test_all_training(golden, capsys):
    assert parity(["--golden", str(golden), "--train"]) == 0
    assert "9 of 9 agree" in capsys.readouterr().out


def _copy(golden, folder, *names):
    for name in names:
        (folder / name).write_bytes((golden / name).read_bytes())


def test_wrong_logits_fail_and_stand_first(golden, tmp_path, capsys):
    _copy(golden, tmp_path, "golden.json", "models.json.gz")
    with np.load(golden / "logits.npz") as logits:
        wrong = logits["resnet18"] * (1 + 3e-5)
        np.savez(tmp_path / "logits.npz", noah_resnet18=logits["noah_resnet18"], resnet18=wrong)
    assert parity(["--golden", str(tmp_path), "--models", "*resnet18"]) == 1
    _, first, second, summary = capsys.readouterr().out.splitlines()
    assert first.startswith("resnet18 ") and first.endswith("FAILED")
    assert second.startswith("noah_resnet18 ") and second.endswith("agrees")
    assert summary == "1 of 2 agree"


@pytest.mark.slow
def test_wrong_training_fails(golden, tmp_path, capsys):
    _copy(golden, tmp_path, "golden.json", "models.json.gz", "train.npz")
    name = "noah_mixer_s16_050_224"
    cases = json.loads((golden / "train.json").read_text())
    cases[name] |= {"lr": 1.01 * cases[name]["lr"], "steps": 1}
    (tmp_path / "train.json").write_text(json.dumps(cases))
    assert parity(["--golden", str(tmp_path), "--train", "--models", name]) == 1
    failed = [line.split()[1] for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    # The first step cannot fail, because its loss and gradients come before the update.
    assert "change" in failed and not {"first", "grad", "grad_norm"} & set(failed)


def test_rounding_is_told_from_mistakes():
    within = Comparison("grad", 1e-5, 1e-6, 1e-4)
    beyond = dataclasses.replace(within, error=1e-3)
    assert within.agrees and not beyond.agrees
    assert dataclasses.replace(beyond, float64_error=1e-9).agrees
    assert not dataclasses.replace(beyond, float64_error=1e-3).agrees


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        ((), ("--models", "*"), "golden.json is missing"),
        (("golden.json", "models.json.gz"), ("--models", "resnext*"), "no golden case matches"),
        (("golden.json", "models.json.gz"), ("--models", "resnet18"), "logits.npz is missing"),
        (("golden.json",), ("--head",), "head.json is missing"),
    ],
)
def test_what_cannot_be_checked_is_one_line(golden, tmp_path, capsys, prepare, arguments, message):
    _copy(golden, tmp_path, *prepare)
    assert parity(["--golden", str(tmp_path), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_corrupt_vectors_are_one_line(golden, tmp_path, capsys):
    _copy(golden, tmp_path, "golden.json")
    (tmp_path / "models.json.gz").write_bytes((golden / "models.json.gz").read_bytes()[:1000])
    assert parity(["--golden", str(tmp_path)]) == 1
    assert "models.json.gz is corrupt" in capsys.readouterr().err
