"""Models inside of other things: prefixes, modules beside them, heads missing or unknown."""

import numpy as np
import pytest

from noah_jax.errors import ConversionError, ReadError
from noah_jax.models import create_model
from noah_jax.pytorch.files.layouts import load_weights
from noah_jax.pytorch.infer import find_model
from noah_jax.pytorch.load import load_torch
from noah_jax.pytorch.parts import find_part
from tests.pytorch.files import torch_bytes as tb
from tests.pytorch.files import torch_files as files

NOAH = "noah_resnet18"
LOSS = {"criterion.weight": np.ones(5, np.float32), "criterion.bias": np.ones(5, np.float32)}


@pytest.fixture(scope="module")
def state():
    return files.shape_only_state(create_model(NOAH, width=8, num_classes=7))


@pytest.fixture(scope="module")
def trunk(state):
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def _under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["backbone.", "net.encoder.", "base_model."])
def test_a_model_beside_other_things(prefix, state):
    found = find_model(_under(prefix, state) | LOSS)
    assert found.model.name == NOAH and found.state_dict.keys() == state.keys()
    assert found.notes[:2] == (
        f"{prefix} in front of the model's keys is left out",
        "2 key(s) beside the model are left out: criterion.weight, criterion.bias",
    )


def test_a_head_beside_its_backbone(state, trunk):
    head = {key: value for key, value in state.items() if key not in trunk}
    assert find_model(_under("backbone.", trunk) | head).state_dict.keys() == state.keys()
    linear = {"fc.weight": np.zeros((7, 64)), "fc.bias": np.zeros(7)}
    for place in ("", "head."):  # as mmpretrain has it
        found = find_model(_under("backbone.", trunk) | _under(place, linear))
        assert found.model.name == "resnet18" and found.model.num_classes == 7
        assert not any("beside the model" in note for note in found.notes)


def test_several_models_are_not_confused(trunk, tmp_path):
    pair = _under("student.net.", trunk) | _under("teacher.net.", trunk)
    with pytest.raises(ConversionError, match=r"models, under student\.net\., teacher\.net"):
        find_model(pair)
    small = files.golden_state(NOAH, width=2, num_classes=3, head_num=1)
    path = files.write(tmp_path / "in.pth", _under("a.", small) | _under("b.", small), "bare", "")
    loaded = load_torch(path, prefix="b")
    assert loaded.model.name == NOAH
    with pytest.raises(ReadError, match=r"no key begins with c\.; they begin with a, b"):
        load_torch(path, prefix="c.")


def test_a_backbone_without_a_head_gives_features(trunk):
    found = find_model(trunk)
    assert found.model.name == "resnet18" and found.model.arguments["features_only"]
    assert "the file has no head" in found.notes[0]
    for name, sizes, token in (
        ("deit_tiny_050_patch16_224", dict(depth=1), True),
        ("noah_pvt_tiny_050", dict(depths=(1, 1, 1, 1)), False),
    ):
        whole = files.shape_only_state(create_model(name, image_size=64, **sizes))
        bare = {key: value for key, value in whole.items() if not key.startswith("head.")}
        model = find_model(bare).model
        assert ("cls_token" in model.abstract()[0]) == token
        named = find_model(bare, name=name, arguments=sizes).model
        assert named.abstract() == model.abstract()


def test_a_head_that_is_unknown_is_left_out_if_asked(trunk):
    own = {"fc.0.weight": np.zeros((9, 64)), "fc.2.weight": np.zeros((3, 9))}
    with pytest.raises(ConversionError, match=r"fc\.0\.weight: shape \(9, 64\) in the file"):
        find_model(trunk | own)
    found = find_model(trunk | own, backbone=True)
    assert found.model.arguments["features_only"]
    assert "2 key(s) beside the model are left out: fc.0.weight, fc.2.weight" in found.notes


def test_what_is_no_model_stays_whole():
    other = {"a.b.weight": np.zeros(3), "c.d.bias": np.zeros(3)}
    assert find_part(other) == (other, [], ())


def _file(path, state, wrap):
    """Writes a file whose pickle `wrap` makes of the state dict's."""
    files.WRAPPERS["mine"] = wrap
    try:
        return files.write(path, state, "mine", "")
    finally:
        del files.WRAPPERS["mine"]


def test_lightning_and_deepspeed(tmp_path):
    small = files.golden_state(NOAH, width=2, num_classes=3, head_num=1)
    lightning = _under("model.", small) | LOSS
    path = _file(
        tmp_path / "last.ckpt",
        lightning,
        lambda w, s, name: tb.dictionary(
            **{"pytorch-lightning_version": tb.text("2.5"), "epoch": tb.number(3)},
            state_dict=w.state(s),
        ),
    )
    loaded = load_torch(path)
    assert loaded.model.name == NOAH and loaded.weights.layout == "lightning"
    assert loaded.weights.metadata["epoch"] == 3
    assert "2 key(s) beside the model are left out: criterion.weight" in loaded.notes[0]
    path = _file(
        tmp_path / "mp_rank_00_model_states.pt",
        small,
        lambda w, s, name: tb.dictionary(
            module=w.state(s), ds_version=tb.text("0.17"), optimizer=b"}"
        ),
    )
    weights = load_weights(path)
    assert weights.layout == "deepspeed" and weights.state_dict.keys() == small.keys()


def test_a_part_of_a_model_that_is_wrapped(state):
    partly = {
        key.replace("layer3.", "layer3._fsdp_wrapped_module."): value
        for key, value in state.items()
    }
    from noah_jax.pytorch.files.layouts import _strip

    assert {_strip(key) for key in partly} == state.keys()


def test_kinds_of_blocks_that_are_not_here():
    vit = files.shape_only_state(create_model("deit_tiny_patch16_224", depth=1, image_size=32))
    vit |= files.empty_state({"reg_token": (1, 4, 192), "pos_embed": (1, 4, 192)})
    with pytest.raises(ConversionError, match="of a kind of block that this package does not have"):
        find_model(vit)
