"""The search for block sizes, emulated; what it says without a GPU."""

import dataclasses

import pytest

from noah_jax.aot.head_shape import HeadShape
from noah_jax.autotune import program
from noah_jax.autotune.__main__ import main
from noah_jax.heads.noah.gpu_blocks import BlockSizes
from noah_jax.heads.noah.gpu_plan import default_blocks, measured_blocks

HEAD = HeadShape((3, 3), 32, 2, 1 / 4, 20, dropout=0.1)
WIDE = HeadShape((7, 7), 2048, 4, 1 / 8, 1000)


def test_without_a_gpu_it_says_so(capsys):
    assert main(["--models", "noah_resnet18"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "autotune times kernels on an NVIDIA GPU, and JAX finds none here" in error


def test_a_model_without_the_head_is_refused(capsys):
    assert main(["--models", "resnet18"]) == 1
    assert "resnet18 has no NOAH head; did you mean noah_resnet18" in capsys.readouterr().err


def test_the_fastest_that_is_right_is_returned(capsys, monkeypatch):
    shape = program.poca_shape(HEAD, 3, "float32")
    default = default_blocks(shape, 3)
    broken = dataclasses.replace(default, classes=24)  # no power of two
    options = dict(rounds=1, implementation="gpu_interpret")
    found = program.tune_head(HEAD, shape, tried=[broken, default], **options)
    assert BlockSizes(**found) == default
    lines = capsys.readouterr().out.splitlines()
    assert "classes 24" in lines[0] and "left out" in lines[0] and "power of two" in lines[0]
    assert "classes 32" in lines[1] and " ms, spread " in lines[1]
    monkeypatch.setitem(program._TOLERANCE, "float32", 1e-12)
    with pytest.raises(ValueError, match="no block sizes compile and agree"):
        program.tune_head(HEAD, shape, tried=[default], **options)
    assert "its numbers differ from the definition" in capsys.readouterr().out


def test_the_candidates_begin_with_the_default():
    shape = program.poca_shape(WIDE, 128, "bfloat16")
    tried = program.candidates(shape)
    assert tried[:2] == [default_blocks(shape, 128), measured_blocks(shape, 128)]
    assert 4 <= len(tried) == len(set(tried)) <= 14
    assert {blocks.products for blocks in tried} == {True, False}
