"""DINOv2: numbers, interpolated positions, tokens, and weights of three layouts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from noah_jax import create_model
from noah_jax.errors import ConversionError
from noah_jax.models import get_family
from noah_jax.models.dinov2.modeling import LAYER_SCALE
from noah_jax.models.positions import resize_bicubic
from noah_jax.pytorch.golden import golden_images
from noah_jax.pytorch.infer import find_model
from noah_jax.pytorch.load import load_torch
from noah_jax.pytorch.mapping import to_jax
from noah_jax.pytorch.reference import example_weights
from noah_jax.pytorch.save import make_state_dict, state_dict_writer
from noah_jax.train.optimizer import decay_mask
from tests.models.vit_checks import check_published, quick_jit

NAMES = ("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2")
SIZES = dict(width=24, depth=2, num_heads=3, num_classes=5)


@pytest.mark.parametrize(("name", "num_params"), [(NAMES[0], 22_056_192), (NAMES[1], 22_057_344)])
def test_num_params(name, num_params):
    """They are those of timm 1.0.31 with `num_classes=0` and with 1000 classes."""
    assert create_model(name, features_only=True).num_params == num_params
    check_published(create_model(name), num_params + 385_000, (518, 518))


@pytest.mark.optimised
@pytest.mark.parametrize("size", [(56, 56), (42, 84)])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_timms(name, size, golden):
    """The model is made for 56 pixels; the other size has interpolated positions."""
    model = create_model(name, image_size=56, **SIZES)
    params, stats = example_weights(model)
    images = golden_images(84)[:, : size[0], : size[1]]
    key = "{}/{}x{}".format(name, *size)
    with np.load(golden / "dinov2.npz") as arrays:
        for what in ("features", "logits"):
            expected = arrays[f"{key}/{what}"]
            actual = quick_jit(getattr(model, what))(params, stats, images)
            assert actual.shape == expected.shape
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * expected.std())
    # What a probe caches for heads, the class token beside the map.
    patches, token = jax.eval_shape(model.encode, params, stats, images)
    assert token.shape == (2, 24) and patches.shape == (2, size[0] // 14, size[1] // 14, 24)


def test_gradients_reach_the_positions_of_another_size():
    model = create_model(NAMES[1], image_size=56, **SIZES | {"depth": 1})
    params, stats = example_weights(model)

    def total(params):
        return model.features(params, stats, golden_images(84)[:, :42])[..., 0].sum()

    grads = quick_jit(jax.grad(total))(params)
    assert np.all(np.asarray(grads["pos_embed"]).any(-1))
    assert np.asarray(grads["reg_token"]).any(-1).all()


def test_images_that_do_not_divide_are_refused():
    model = create_model(NAMES[0], image_size=56, **SIZES)
    params, stats = model.abstract()
    images = jax.ShapeDtypeStruct((1, 56, 60, 3), jnp.float32)
    with pytest.raises(ValueError, match="does not divide into patches of 14 pixels"):
        jax.eval_shape(model.logits, params, stats, images)
    with pytest.raises(ValueError, match=r"image_size=\(224, 200\) does not divide"):
        create_model(NAMES[0], image_size=(224, 200))


@pytest.mark.parametrize("registers", ["4", 0, True])
def test_registers_that_are_none(registers):
    for name in NAMES:
        with pytest.raises(ValueError, match="registers must be"):
            create_model(name, registers=registers)


@pytest.mark.parametrize("name", NAMES)
def test_every_head_keeps_the_tokens(name):
    """The pretrained patches have seen them, and a model without a head gives the same map."""
    weights = {
        head: create_model(name, image_size=56, head=head, **SIZES).abstract()[0]
        for head in ("linear", "noah")
    }
    bare = create_model(name, image_size=56, features_only=True, **SIZES)
    for params in weights.values():
        assert params.pop("head")
        assert params == bare.abstract()[0]
    assert ("reg_token" in bare.abstract()[0]) == ("reg4" in name)
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(bare.logits, *bare.abstract(), images).shape == (2, 16, 16, 24)


def test_fresh_weights():
    model = create_model(NAMES[0], image_size=28, **SIZES | {"depth": 1})
    params, _ = quick_jit(model.init)(jax.random.key(0))
    assert np.all(params["blocks"]["0"]["ls1"] == np.float32(LAYER_SCALE))
    assert 0 < np.abs(params["cls_token"]).max() < 1e-5
    assert 0.01 < np.std(params["pos_embed"]) < 0.03


# ---- Conversion.


def _state(name, image_size=56, **arguments):
    """A model of timm's layout and its state dict."""
    model = create_model(name, image_size=image_size, **SIZES | arguments)
    params, stats = example_weights(model)
    return model, make_state_dict(model, params, stats)


def _authors(state, chunked=False):
    """The state dict in the layout of DINOv2's authors."""
    out = {"mask_token": np.ones((1, 24), np.float32)}
    for key, value in state.items():
        name = key.replace("blocks.", "blocks.0." if "blocks.0." in key else "blocks.1.")
        out[name if chunked else key] = value
    if "reg_token" in out:
        out["register_tokens"] = out.pop("reg_token")
        position = np.full((1, 1, 24), 0.25, np.float32)
        out["pos_embed"] = np.concatenate([position, out["pos_embed"]], axis=1)
        out["cls_token"] = out["cls_token"] - position
    return out


_HUGGING_FACE = (
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("register_tokens", "embeddings.register_tokens"),
    ("blocks.", "encoder.layer."),
    (".attn.proj", ".attention.output.dense"),
    (".attn.qkv", ".attention.attention.qkv"),
    ("ls1.gamma", "layer_scale1.lambda1"),
    ("ls2.gamma", "layer_scale2.lambda1"),
)


def _hugging_face(state):
    """The state dict in the layout of Hugging Face's Dinov2Model."""
    out = {}
    for key, value in _authors(state).items():
        name = "layernorm." + key[5:] if key.startswith("norm.") else key
        for old, new in _HUGGING_FACE:
            name = name.replace(old, new)
        if ".qkv." in name:
            for part, array in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                out[name.replace("qkv", part)] = array
        else:
            out[name] = value
    return out


def _backbone(state):
    return {key: value for key, value in state.items() if key.partition(".")[0] != "head"}


def _converted(state):
    """The parameters that the converter makes of a state dict."""
    found = find_model(state)
    params, _ = found.model.abstract()
    return to_jax(found.state_dict, get_family(found.model.name).table, {"params": params})[
        "params"
    ]


def _assert_same(found, state):
    assert found.keys() - {"mask_token"} == state.keys()
    for key, value in state.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["timm", "authors", "chunked", "hugging face"])
def test_weights_of_every_layout(name, layout):
    model, state = _state(name)
    state = _backbone(state)
    foreign = {
        "timm": dict,
        "authors": _authors,
        "chunked": lambda state: _authors(state, chunked=True),
        "hugging face": _hugging_face,
    }[layout](state)
    found = find_model(foreign)
    _assert_same(found.state_dict, state)
    assert found.model.name == name and found.model.arguments["features_only"]
    assert "the file has no head" in found.notes[0]
    shapes = jax.tree.map(np.shape, _converted(foreign))
    assert shapes == jax.tree.map(np.shape, _backbone(model.abstract()[0]))
    named = find_model(foreign, name=name, arguments=SIZES | {"image_size": 56})
    assert named.model.arguments["features_only"]
    _assert_same(named.state_dict, state)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_there_and_back(name, tmp_path):
    """timm's names, with a head and without, as published sizes and 518 pixels."""
    path = tmp_path / "model.safetensors"
    for name_, head in ((name, "linear"), (f"noah_{name}", "noah")):
        model, state = _state(name_, image_size=28)
        state_dict_writer(str(path))(state, path, model)
        loaded = load_torch(path, arguments={"num_heads": 3})
        assert loaded.model.name == name_ and loaded.model.arguments["head"] == head
        assert loaded.model.abstract() == model.abstract()
        again = make_state_dict(loaded.model, loaded.params, loaded.stats)
        assert again.keys() == state.keys()
        assert all(np.array_equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("name", NAMES)
def test_another_image_size_resizes_the_positions(name):
    _, state = _state(name, image_size=56)
    found = find_model(state, arguments={"image_size": (28, 70), "num_heads": 3})
    assert found.model.image_size == (28, 70)
    assert "pos_embed is resized from 4x4 to 2x5 positions" in found.notes
    token = int("reg4" not in name)
    old, new = state["pos_embed"], found.state_dict["pos_embed"]
    np.testing.assert_array_equal(new[:, :token], old[:, :token])
    np.testing.assert_array_equal(
        new[:, token:], resize_bicubic(old[:, token:], (4, 4), (2, 5), antialias=True)
    )
    # The model that has the other size by interpolation computes the same.
    given = create_model(name, image_size=(28, 70), **SIZES)
    made = create_model(name, image_size=56, **SIZES)
    params, stats = example_weights(made)
    resized = params | {"pos_embed": jnp.asarray(new)}
    images = golden_images(84)[:, :28, :70]
    np.testing.assert_allclose(
        quick_jit(given.logits)(resized, stats, images),
        quick_jit(made.logits)(params, stats, images),
        atol=1e-5,
    )


def test_deit_and_pvt_resize_their_positions_too():
    deit = create_model("deit_tiny_patch16_224", width=24, depth=1, num_heads=3, image_size=64)
    state = make_state_dict(deit, *example_weights(deit))
    found = find_model(state, arguments={"image_size": 96})
    np.testing.assert_array_equal(
        found.state_dict["pos_embed"][:, 1:],
        resize_bicubic(state["pos_embed"][:, 1:], (4, 4), (6, 6)),
    )
    sizes = dict(widths=(8,) * 4, depths=(1,) * 4, num_heads=(1,) * 4)
    pvt = create_model("pvt_tiny", image_size=64, **sizes)
    state = make_state_dict(pvt, *example_weights(pvt))
    found = find_model(state, arguments={"image_size": 96})
    shapes = [found.state_dict[f"pos_embed{stage}"].shape[1] for stage in (1, 2, 3, 4)]
    assert shapes == [24**2, 12**2, 6**2, 1 + 3**2] and len(found.notes) >= 4


def test_what_is_not_dinov2_is_named():
    _, state = _state(NAMES[0])
    deit3 = state | {"pos_embed": state["pos_embed"][:, 1:]}
    with pytest.raises(ConversionError, match="this is a DeiT-3"):
        find_model(deit3)
    giant = {key.replace("fc1", "w12").replace("fc2", "w3"): x for key, x in state.items()}
    with pytest.raises(ConversionError, match="SwiGLU"):
        find_model(giant)
    classifier = {f"backbone.{key}": x for key, x in _backbone(state).items()}
    classifier["linear_head.weight"] = np.zeros((1000, 48), np.float32)
    with pytest.raises(ConversionError, match=r"reads the mean of the patches.*backbone's file"):
        find_model(classifier)
    hugging_face = {f"dinov2.{key}": x for key, x in _hugging_face(_backbone(state)).items()}
    hugging_face["classifier.weight"] = np.zeros((1000, 48), np.float32)
    with pytest.raises(ConversionError, match="reads the mean of the patches"):
        find_model(hugging_face)


@pytest.mark.parametrize("layout", [_authors, _hugging_face])
@pytest.mark.parametrize("shape", [None, (3,), (2, 3, 5)])
def test_broken_files_of_other_layouts_give_one_line(layout, shape):
    foreign = layout(_backbone(_state(NAMES[1])[1]))
    parts = "cls_token|register_tokens|pos|.1.norm1.weight|.0.attn.qkv.bias|.0.*key.weight"
    if shape is None:  # then it would be a file of the model without registers
        parts = parts.replace("register_tokens|", "")
    for broken in (key for key in foreign if re.search(parts, key)):
        state = {key: x for key, x in foreign.items() if key != broken}
        if shape is not None:
            state[broken] = np.zeros(shape, np.float32)
        with pytest.raises(ValueError) as raised:
            _converted(state)
        assert "\n" not in str(raised.value), broken


def test_weight_decay_spares_tokens_and_scales():
    model = create_model(NAMES[1], image_size=28, **SIZES)
    mask = decay_mask(model.abstract()[0], decay_all=False, no_decay=model.architecture.no_decay)
    spared = {key for key, decayed in flatten_dict(mask, sep="/").items() if not decayed}
    assert {"pos_embed", "cls_token", "reg_token", "blocks/0/ls1", "blocks/1/ls2"} <= spared
    assert "blocks/0/attn/qkv/kernel" not in spared
