"""What the programs do with models of every kind of head."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from noah_jax import create_model, load_model
from noah_jax.config import default_config
from noah_jax.convert.__main__ import main as convert
from noah_jax.errors import ConversionError
from noah_jax.explain.__main__ import main as explain
from noah_jax.export.__main__ import main as export
from noah_jax.heads.registry import HEADS
from noah_jax.inference.initial_weights import load_initial_weights
from noah_jax.pytorch.load import load_torch
from noah_jax.pytorch.save import make_state_dict, state_dict_writer
from noah_jax.runs.checkpoints import save_model
from noah_jax.train.param_groups import find_param_groups, trainable
from tests.helpers import GOLDEN

TINY = dict(num_classes=3, image_size=32, stem="small", width=4, depths=(1, 1, 1, 1))
OPTIONS = {
    "csra": {"num_heads": 2},
    "map": {"num_heads": 2},
    "ml_decoder": {"width": 16, "hidden": 12, "num_heads": 2},
}


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


@pytest.mark.parametrize("head", ["csra", "map", "ml_decoder"])
def test_explain_draws_what_the_head_has(head, folder_of, tmp_path):
    both = HEADS[head].draws == ("attention", "contributions")
    shared = HEADS[head].shared_attention
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
    assert text.count("the same for all classes</figcaption>") == (2 if shared else 0)
    assert (data[0]["attention"] == data[1]["attention"]) == shared
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["001_china_class0.png", "001_china_class1.png", "all.png"]


@pytest.mark.parametrize("head", ["linear", "gem"])
def test_explain_refuses_heads_without_attention_in_one_line(head, folder_of, tmp_path, capsys):
    arguments = ["--checkpoint", str(folder_of(head)), "--output", str(tmp_path / "out")]
    assert explain([*arguments, "--image", str(GOLDEN / "images/china.jpg")]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"a {head} head" in said and "noah, map, csra, simpool, ep" in said
    assert not (tmp_path / "out").exists()


def _same_weights(folder, other):
    for left, right in zip(load_model(str(folder))[1:], load_model(str(other))[1:], strict=True):
        assert jax.tree.structure(left) == jax.tree.structure(right)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            np.testing.assert_array_equal(a, b)


def _to_torch(folder, path):
    """Converts a folder to PyTorch's names; returns the state dict."""
    assert convert(["--to-torch", str(folder), str(path)]) == 0
    return load_file(path)


@pytest.mark.parametrize("head", HEADS)
def test_to_pytorchs_names_and_back(head, folder_of, tmp_path, capsys):
    _to_torch(folder_of(head), tmp_path / "model.safetensors")
    back = str(tmp_path / "back")
    source = str(tmp_path / "model.safetensors")
    assert convert([source, back, "--set", "image_size=32"]) == 0
    assert "head's options" not in capsys.readouterr().out
    expected, model = (load_model(str(x))[0] for x in (folder_of(head), back))
    differing = {"name", "head_num", "key_ratio"} if head != "noah" else set()
    for key in expected.arguments.keys() - differing:
        assert model.arguments[key] == expected.arguments[key], key
    _same_weights(folder_of(head), back)


def test_the_names_are_pytorchs(folder_of, tmp_path):
    shapes = {
        head: {
            key.removeprefix("head."): x.shape
            for key, x in _to_torch(folder_of(head), tmp_path / f"{head}.safetensors").items()
            if key.startswith("head.")
        }
        for head in ("csra", "map")
    }
    assert shapes["csra"] == {"classifier.weight": (2, 3, 32)}
    assert shapes["map"] == {
        "latent": (1, 1, 32),
        **{"q.weight": (32, 32), "q.bias": (32,), "kv.weight": (64, 32), "kv.bias": (64,)},
        **{"proj.weight": (32, 32), "proj.bias": (32,), "norm.weight": (32,), "norm.bias": (32,)},
        **{"mlp.fc1.weight": (128, 32), "mlp.fc1.bias": (128,)},
        **{"mlp.fc2.weight": (32, 128), "mlp.fc2.bias": (32,)},
        **{"linear.weight": (3, 32), "linear.bias": (3,)},
    }


def test_a_bare_state_dict_tells_its_head_and_the_caller_its_options(folder_of, tmp_path, capsys):
    for head in ("csra", "map"):
        state = _to_torch(folder_of(head), tmp_path / f"{head}.safetensors")
        save_file(state, tmp_path / f"{head}.safetensors")
    source, out = str(tmp_path / "map.safetensors"), str(tmp_path / "map")
    assert convert([source, out, "--set", "head.map.num_heads=2"]) == 0
    assert "the map head's options: taken as mlp_ratio=4.0" in capsys.readouterr().out
    assert load_model(out)[0].arguments["head_options"] == {"num_heads": 2, "mlp_ratio": 4.0}
    source, out = str(tmp_path / "csra.safetensors"), str(tmp_path / "csra")
    assert convert([source, out]) == 1
    said = capsys.readouterr().err
    assert "head.classifier.weight has shape (2, 3, 32), and a csra head with num_heads=1" in said
    assert "--set head.csra.num_heads=... head.csra.lam=..." in said
    assert convert([source, out, "--set", "head.csra.num_heads=2", "head.csra.lam=0.3"]) == 0
    assert load_model(out)[0].arguments["head_options"] == {"num_heads": 2, "lam": 0.3}
    assert convert([source, f"{out}2", "--model", "noah_resnet18"]) == 1
    assert "the file has a csra head" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"attention": "uniform"}, {}),
        ({"attention": "uniform", "merge": "max"}, {"head_num": 2, "key_ratio": 0.25}),
        ({"merge": "mean"}, {"head_num": 2}),
    ],
)
def test_noahs_ablations_to_pytorchs_names_and_back(options, arguments, tmp_path):
    model = create_model("noah_resnet18", head_options=options, **TINY, **arguments)
    params, stats = jax.tree.map(_draw, model.abstract())
    state, path = make_state_dict(model, params, stats), tmp_path / "model.safetensors"
    assert ("head.query.weight" in state) == ("attention" not in options)
    state_dict_writer(str(path))(state, path, model)
    given = {"image_size": 32} | ({"head_num": 2} if arguments else {})
    loaded = load_torch(path, arguments=given)
    for key in ("head_options", "head_num", "key_ratio"):
        assert loaded.model.arguments[key] == model.arguments[key], key
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_query_n_must_be_given(tmp_path):
    arguments = {"head_num": 2, "head_options": {"attention": "uniform"}}
    model = create_model("noah_resnet18", **TINY, **arguments)
    state = make_state_dict(model, *jax.tree.map(_draw, model.abstract()))
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ConversionError, match=r"without the query .* give --set head_num=N"):
        load_torch(tmp_path / "a.safetensors")


@pytest.mark.parametrize("head", HEADS)
def test_training_in_bfloat16_with_rematerialisation(head):
    arguments = {"head_num": 2} if head == "noah" else {}
    model = create_model(
        "resnet18",
        **TINY,
        head=head,
        head_options=OPTIONS.get(head),
        head_drop_rate=0.5,
        dtype="bfloat16",
        remat=True,
        **arguments,
    )

    def loss(params, stats, images, key):
        logits, _ = model.apply(params, stats, images, train=True, key=key)
        assert logits.shape == (2, 3) and logits.dtype == np.float32
        return logits.sum()

    params, stats = model.abstract()
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    gradients = jax.eval_shape(jax.grad(loss), params, stats, images, jax.random.key(0))
    assert gradients == params


@pytest.mark.parametrize("head", HEADS)
def test_freezing_the_backbone_leaves_the_head(head):
    params, _ = _model(head).abstract()
    section = default_config().optim.to_dict() | {"freeze": ("^(?!head/)",)}
    groups = find_param_groups(section, params)
    assert trainable(params, groups.frozen) == {"head": params["head"]}


@pytest.mark.parametrize("head", HEADS)
def test_fine_tuning_takes_the_same_head_and_starts_another_afresh(head, folder_of):
    same = load_initial_weights(str(folder_of(head)), _model(head))
    assert not [line for line in same.lines if "fresh" in line]
    assert any(path.startswith("head/") for path in same.params)
    other = create_model("resnet18", head="gem" if head != "gem" else "linear", **TINY)
    fresh = load_initial_weights(str(folder_of(head)), other)
    assert not [path for path in fresh.params if path.startswith("head/")]
    assert [line for line in fresh.lines if line.startswith("the head is fresh: ")]


def test_a_head_with_other_options_is_fresh(folder_of):
    options = {"num_heads": 2, "lam": 0.3}
    model = create_model("resnet18", head="csra", head_options=options, **TINY)
    fresh = load_initial_weights(str(folder_of("csra")), model)
    assert not [path for path in fresh.params if path.startswith("head/")]
    there, here = "csra, num_heads=2 of 3 classes", "csra, num_heads=2, lam=0.3 of 3 classes"
    assert f"the head is fresh: {there} there, {here} here" in fresh.lines


def test_the_card_of_an_exported_model_names_the_options(folder_of, tmp_path):
    out = tmp_path / "exported"
    assert export(["--checkpoint", str(folder_of("csra")), "--output", str(out)]) == 0
    assert "and the csra head (num_heads=2), exported" in (out / "README.md").read_text()
