"""Arguments and images of a wrong kind: one clear error, never another model without a word."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax import NOAH, create_model, load_model
from noah_jax.compare.contenders import overrides_for
from noah_jax.errors import InputError
from noah_jax.runs.checkpoints import save_model

SMALL = dict(num_classes=3, width=4, depths=(1, 1, 1, 1), stem="small", image_size=16)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("num_classes", ["10", 10.0, True, -1, 0, [10], np.float32(10), float("nan")]),
        ("head_num", ["4", 4.0, True, 0, -2]),
        ("key_ratio", ["0.5", True, [0.5]]),
        ("image_size", ["224", 224.0, True, 0, -1, (224, "224"), (224, 224.0)]),
        ("batch_norm_group", ["32", 32.0, True, 0, -32]),
        ("head_drop_rate", ["0.1", True, None]),
        ("head_split", ["no", 1, None]),
        ("kv_split", ["no", 0]),
        ("remat", ["yes", 1]),
        ("features_only", ["yes", 1]),
        ("width", ["8", True, 8.0, -8, 0]),
        ("depths", [("1", 1, 1, 1), (True, 1, 1, 1)]),
    ],
)
def test_values_of_a_wrong_kind(key, values):
    for value in values:
        with pytest.raises(InputError, match=key) as caught:
            create_model("noah_resnet18", **{key: value})
        assert "\n" not in str(caught.value)
        assert repr(value) in str(caught.value) or isinstance(value, list | tuple)


def test_numbers_of_numpy_are_numbers():
    numpy = dict(num_classes=np.int64(3), width=np.int32(4), depths=tuple(np.ones(4, int)))
    numpy |= dict(image_size=np.int64(16), head_num=np.int16(2), key_ratio=np.float32(0.5))
    model = create_model("noah_resnet18", stem="small", head_drop_rate=np.float64(0), **numpy)
    plain = create_model("noah_resnet18", head_num=2, key_ratio=0.5, **SMALL)
    arguments = [json.dumps(m.arguments, sort_keys=True) for m in (model, plain)]
    assert arguments[0] == arguments[1]
    assert model.abstract() == plain.abstract()


@pytest.mark.parametrize(
    "arguments",
    [
        *(dict(in_features="8"), dict(num_classes="5"), dict(num_classes=True), dict(head_num=2.0)),
        *(dict(key_ratio="0.5"), dict(dropout="0"), dict(dropout=True), dict(kv_split=1)),
    ],
)
def test_the_head_alone_checks_them_too(arguments):
    (key,) = arguments
    with pytest.raises(InputError, match=key):
        NOAH(**{**dict(in_features=8, num_classes=5), **arguments}, rngs=nnx.Rngs(params=0))


def test_a_linear_head_takes_nothing_of_noahs():
    for arguments in (dict(head_num=4), dict(key_ratio=0.5), dict(kv_split=False)):
        (key,) = arguments
        words = f"resnet18 has a linear head, which takes no {key}; .* create noah_resnet18, or"
        with pytest.raises(InputError, match=words):
            create_model("resnet18", **arguments)
        with pytest.raises(InputError, match="has a linear head"):
            create_model("noah_resnet18", head="linear", **arguments)
    with pytest.raises(InputError, match="has the head NOAH, which takes no head_num and no key_r"):
        own = NOAH(32, 3, rngs=nnx.Rngs(params=0))
        create_model("resnet18", head=own, head_num=2, key_ratio=0.5, **SMALL)
    assert create_model("resnet18", head="noah", head_num=2, **SMALL).arguments["head_num"] == 2


def test_folders_of_earlier_versions_have_them_for_any_head(tmp_path):
    model = create_model("mixer_s16_224", num_classes=3, image_size=32, width=8, depth=1)
    params, stats = model.init(jax.random.key(0))
    save_model(tmp_path / "checkpoints", {"params": params, "stats": stats})
    arguments = {**model.arguments, "head_num": 4, "key_ratio": 0.5}
    (tmp_path / "model.json").write_text(json.dumps({"name": model.name, "arguments": arguments}))
    loaded, _, _ = load_model(str(tmp_path))
    assert loaded.arguments == model.arguments and loaded.arguments["head_num"] is None
    assert repr(loaded).startswith("<Model mixer_s16_224: ")


def test_compare_leaves_them_out_of_the_linear_head():
    words = ["--config.model.head_num", "8", "--config.epochs=1", "--config.model.key_ratio=0.5"]
    assert overrides_for("noah", words) == words
    assert overrides_for("linear", words) == ["--config.epochs=1"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.bool_])
def test_pixels_where_normalised_floats_are_expected(dtype):
    model = create_model("noah_resnet18", head_num=2, **SMALL)
    params, stats = model.abstract()
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), dtype)
    classes = jnp.array([0])
    for function in (
        lambda p, s, x: model.apply(p, s, x, train=False),
        lambda p, s, x: model.apply(p, s, x, train=True),
        model.features,
        lambda p, s, x: model.attention(p, s, x, classes),
        lambda p, s, x: model.contributions(p, s, x, classes),
    ):
        with pytest.raises(InputError, match=f"normalised floats here, got {np.dtype(dtype)}"):
            jax.eval_shape(function, params, stats, images)
    if dtype == np.uint8:
        assert jax.eval_shape(model.logits, params, stats, images).shape == (2, 3)
    else:
        with pytest.raises(InputError, match="uint8 pixels or normalised floats"):
            jax.eval_shape(model.logits, params, stats, images)
