"""What the programs do with models of every kind of head."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest

from noah_jax import create_model
from noah_jax.explain.__main__ import main as explain
from noah_jax.heads.registry import HEADS
from noah_jax.runs.checkpoints import save_model
from tests.helpers import GOLDEN

TINY = dict(num_classes=3, image_size=32, stem="small", width=4, depths=(1, 1, 1, 1))
OPTIONS = {"csra": {"num_heads": 2}, "map": {"num_heads": 2}}


def _model(head):
    arguments = {"head_num": 2} if head == "noah" else {}
    return create_model("resnet18", head=head, head_options=OPTIONS.get(head), **TINY, **arguments)


def _draw(leaf):
    """Random weights with which maps are neither constant nor 0."""
    drawn = np.random.RandomState(leaf.size).standard_normal(leaf.shape).astype(np.float32)
    if leaf.ndim < 2:
        return np.float32(0.5) + drawn**2 / 4
    return drawn / np.sqrt(np.float32(leaf.size / leaf.shape[-1]))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Writes a model with a kind of head and random weights; returns its folder."""
    root, folders = tmp_path_factory.mktemp("heads"), {}

    def write(head) -> pathlib.Path:
        if head not in folders:
            model, folders[head] = _model(head), root / head
            params, stats = jax.tree.map(_draw, model.abstract())
            save_model(str(folders[head] / "checkpoints"), {"params": params, "stats": stats})
            description = {"name": model.name, "arguments": model.arguments}
            (folders[head] / "model.json").write_text(json.dumps(description))
        return folders[head]

    return write


@pytest.mark.parametrize("head", HEADS)
def test_the_row_says_what_the_module_draws(head):
    module = _model(head)._abstract_module().head
    methods = [what for what in ("attention", "contributions") if hasattr(module, what)]
    assert tuple(methods) == HEADS[head].draws


@pytest.mark.parametrize("head", ["csra", "map"])
def test_explain_draws_what_the_head_has(head, folder_of, tmp_path):
    both = HEADS[head].draws == ("attention", "contributions")
    arguments = ["--checkpoint", str(folder_of(head)), "--classes", "0", "1"]
    arguments += ["--image", str(GOLDEN / "images/china.jpg"), "--output", str(tmp_path)]
    assert explain([*arguments, "--overview", str(tmp_path / "all.png")]) == 0
    text = (tmp_path / "index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert len(data) == 2
    kinds = ["contributions", "attention"] if both else ["attention"]
    for own in data:
        assert list(own) == ["rows", "columns", *kinds, "scale"]
        assert list(own["scale"]) == kinds
        assert np.sum(own["attention"], 1) == pytest.approx(1, abs=1e-5)
    assert ("red</b> adds" in text) == both
    assert text.count("the same for all classes</figcaption>") == (0 if both else 2)
    assert (data[0]["attention"] == data[1]["attention"]) == (not both)
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["001_china_class0.png", "001_china_class1.png", "all.png"]


@pytest.mark.parametrize("head", ["linear", "gem"])
def test_explain_refuses_heads_without_attention_in_one_line(head, folder_of, tmp_path, capsys):
    arguments = ["--checkpoint", str(folder_of(head)), "--output", str(tmp_path / "out")]
    assert explain([*arguments, "--image", str(GOLDEN / "images/china.jpg")]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"a {head} head" in said and "noah, map, csra, simpool, ep" in said
    assert not (tmp_path / "out").exists()
