"""The model is found from keys and shapes."""

import gzip
import json

import numpy as np
import pytest

from noah_jax.errors import ConversionError
from noah_jax.models import FAMILIES, create_model, get_family
from noah_jax.pytorch.golden import golden_tensor
from noah_jax.pytorch.infer import find_model
from noah_jax.pytorch.mapping import to_jax
from noah_jax.pytorch.renames import rename
from tests.helpers import original_models
from tests.pytorch.files import torch_files as files


def _twins() -> dict[str, str]:
    """Names with the same weights and class count, and the plain name that is chosen."""
    plain = {
        "mixer_b16_224_miil": "mixer_b16_224",
        "resmlp_12_distilled_224": "resmlp_12_224",
        "resmlp_24_distilled_224": "resmlp_24_224",
        "resmlp_36_distilled_224": "resmlp_36_224",
        "resmlp_big_24_distilled_224": "resmlp_big_24_224",
        "resmlp_big_24_224_in22ft1k": "resmlp_big_24_224",
    }
    return plain | {f"noah_{name}": f"noah_{chosen}" for name, chosen in plain.items()}


def _check(name, golden):
    with gzip.open(golden / "models.json.gz", "rt") as file:
        state = files.empty_state(json.load(file)[name]["state"])
    given = {"pre_logits": "pre_logits.fc.weight" in state} if "deit" in name else {}
    files.assert_same_model(
        find_model(state).model, create_model(_twins().get(name, name), **given)
    )
    hinted = find_model(state, hint=name.removeprefix("noah_"))
    assert hinted.model.name == name
    assert not any("would fit" in note for note in hinted.notes)


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "noah_mobilenetv2_075",
        "mobilenetv3_large",
        "noah_shufflenetv2_150",
        "deit_base_patch16_384",
        "noah_pvt_tiny",
        "noah_mixer_b16_224_miil_in21k",
        "noah_mixer_b16_224_miil",
        "gmixer_12_224",
        "resmlp_12_distilled_224",
    ],
)
def test_published_models(name, golden):
    _check(name, golden)


@pytest.mark.slow
@pytest.mark.parametrize("name", original_models())
def test_every_published_model(name, golden):
    _check(name, golden)


def _find(name, **arguments):
    return find_model(files.golden_state(name, **arguments), hint=name)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("noah_resnet18", dict(width=8, stem="small", head_num=2, key_ratio=1 / 8)),
        ("noah_resnet18", dict(width=9, head_num=3, key_ratio=11 / 24)),
        ("noah_deit_tiny_050_patch16_224", dict(pre_logits=False, image_size=32, head_num=1)),
        ("noah_gmlp_ti16_050_224", dict(image_size=32, key_ratio=1 / 4, head_num=8)),
    ],
)
def test_heads_sizes_and_switches_of_ones_own(name, arguments):
    model = _find(name, num_classes=7, **arguments).model
    files.assert_same_model(model, create_model(name, num_classes=7, **arguments))


def test_the_share_of_the_query_channels_survives_rounding():
    # 29 / 72 * 72 is 28.99...: the model would round it down.
    state = files.golden_state("noah_resnet18", width=9, head_num=1, key_ratio=29.5 / 72)
    assert int(72 * (29 / 72)) in (28, 29)
    model = find_model(state).model
    assert model.abstract()[0]["head"]["query"]["kernel"].shape == (1, 29, 1000)


@pytest.mark.parametrize("switches", [dict(head_split=False), dict(kv_split=False)])
def test_other_switches_must_be_given(switches):
    state = files.golden_state("noah_resnet18", width=8, num_classes=7, head_num=2, **switches)
    model = find_model(state, arguments=dict(head_num=2, **switches)).model
    assert model.arguments["num_classes"] == 7 and model.arguments["head_num"] == 2
    assert model.arguments["key_ratio"] == 1 / 2
    with pytest.raises(ConversionError, match="do not tell N; give --set head_num=N"):
        find_model(state, arguments=switches)


def test_what_fits_as_well_is_said():
    state = files.golden_state("resmlp_12_224", image_size=32, num_classes=3)
    found = find_model(state)
    assert found.model.name == "resmlp_12_224"
    assert "resmlp_12_distilled_224 would fit as well" in found.notes[0]
    assert find_model(state, hint="resmlp_12_distilled_224.fb_in1k").notes == ()
    named = find_model(state, name="resmlp_12_distilled_224")
    assert named.model.name == "resmlp_12_distilled_224"
    odd = find_model(state, hint="my_net").notes
    assert "called 'my_net', which is not a registered name" in odd[-1]


def test_what_no_model_fits():
    with pytest.raises(ConversionError, match="those of no registered family"):
        find_model({"encoder.weight": np.zeros(3), "decoder.weight": np.zeros(3)})
    state = files.golden_state("noah_resnet18", width=8, num_classes=7)
    wrong = {**state, "layer2.0.conv2.weight": np.zeros((16, 16, 5, 5), np.float32)}
    with pytest.raises(ConversionError) as raised:
        find_model(wrong)
    message = str(raised.value)
    assert (
        "nearest: noah_resnet18 with width=8 (layer2.0.conv2.weight: shape (16, 16, 5, 5)"
        in message
    )
    assert "1 problem(s)" in message and "\n" not in message
    with pytest.raises(ConversionError, match=r"has a noah head.*--model noah_resnet18 has it"):
        find_model(state, name="resnet18")
    with pytest.raises(ValueError, match="unknown model 'resnet19'"):
        find_model(state, name="resnet19")


@pytest.mark.parametrize("prefix", ["backbone.", "net.", "a.b.c."])
@pytest.mark.parametrize("name", ["noah_resnet18", "mixer_s16_224"])
def test_names_in_front_of_all_keys_are_left_out_and_said(prefix, name):
    state = files.shape_only_state(create_model(name, width=8, num_classes=7))
    found = find_model({prefix + key: value for key, value in state.items()})
    assert found.model.name == find_model(state).model.name
    assert found.state_dict.keys() == state.keys()
    assert found.notes[0] == f"{prefix} in front of all keys is left out"
    named = {f"x.{key}": value for key, value in files.golden_state("resnet18").items()}
    assert find_model(named, name="resnet18").model.name == "resnet18"


FOREIGN = {
    "a distilled DeiT": ("dist_token", "head_dist.weight", "blocks.0.attn.qkv.weight"),
    "a DeiT-3": ("blocks.0.gamma_1", "blocks.0.attn.qkv.weight"),
    "with layer scale": ("blocks.0.ls1.gamma", "blocks.0.attn.qkv.weight"),
    "a PVT v2": ("patch_embed1.proj.weight", "block1.0.mlp.dwconv.dwconv.weight"),
    "PVT v1, pvt_huge_v2 too": ("stages.0.blocks.0.mlp.dwconv.weight",),
    "timm's MobileNetV3": (
        *("conv_stem.weight", "conv_head.bias", "blocks.1.0.se.conv_reduce.weight"),
        "blocks.1.0.bn2.weight",
    ),
    "timm's EfficientNet": (
        *("conv_stem.weight", "bn2.weight", "blocks.1.0.se.conv_reduce.weight"),
    ),
    "a Swin": ("layers.0.blocks.0.attn.relative_position_bias_table",),
    "a ConvNeXt": ("stages.0.0.gamma", "stages.0.0.dwconv.weight"),
    "torchvision's ViT": ("encoder.layers.encoder_layer_0.ln_1.weight",),
    "a VGG": ("features.0.weight", "classifier.6.weight"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_models_of_other_kinds_are_named(kind, prefix):
    state = {prefix + key: np.zeros(3, np.float32) for key in FOREIGN[kind]}
    with pytest.raises(ConversionError, match=f"this is .*{kind}"):
        find_model(state)


def test_a_distilled_deit_is_named_whatever_else_it_has():
    state = files.shape_only_state(create_model("deit_tiny_patch16_224", depth=1))
    state |= files.empty_state({"dist_token": (1, 1, 192), "pos_embed": (1, 198, 192)})
    with pytest.raises(ConversionError, match="this is a distilled DeiT"):
        find_model(state)


def test_images_that_are_not_square():
    arguments = dict(num_classes=3, image_size=(32, 96))
    state = files.golden_state("deit_tiny_050_patch16_224", **arguments)
    with pytest.raises(ConversionError, match=r"13 positions, 12 without.*give --set image_size"):
        find_model(state)
    model = find_model(state, arguments={"image_size": (32, 96)}).model
    assert model.image_size == (32, 96)


# Names that other libraries use.

_TIMM_MOBILENETV2 = {
    "conv_stem.weight": "features.0.0.weight",
    "bn1.running_var": "features.0.1.running_var",
    "blocks.0.0.conv_dw.weight": "features.1.conv.0.0.weight",
    "blocks.0.0.bn1.bias": "features.1.conv.0.1.bias",
    "blocks.0.0.conv_pw.weight": "features.1.conv.1.weight",
    "blocks.0.0.bn2.weight": "features.1.conv.2.weight",
    "blocks.1.0.conv_pw.weight": "features.2.conv.0.0.weight",
    "blocks.2.1.conv_dw.weight": "features.5.conv.1.0.weight",
    "blocks.3.3.bn2.running_mean": "features.10.conv.1.1.running_mean",
    "blocks.6.0.conv_pwl.weight": "features.17.conv.2.weight",
    "blocks.6.0.bn3.weight": "features.17.conv.3.weight",
    "conv_head.weight": "features.18.0.weight",
    "bn2.bias": "features.18.1.bias",
    "classifier.weight": "head.2.weight",
}


@pytest.mark.parametrize(
    ("family", "pairs"),
    [
        ("resnet", {"fc.weight": "head.2.weight", "conv1.weight": "conv1.weight"}),
        ("shufflenetv2", {"fc.bias": "head.2.bias"}),
        ("mobilenetv2", {"classifier.1.weight": "head.2.weight"}),
        ("mobilenetv2", _TIMM_MOBILENETV2),
        ("mlp", {"blocks.3.attn.weight": "blocks.3.linear_tokens.weight"}),
        ("mlp", {"blocks.3.gamma_2": "blocks.3.ls2", "patch_embed.proj.bias": "stem.proj.bias"}),
    ],
)
def test_names(family, pairs):
    arrays = {key: np.full((2, 3), i) for i, key in enumerate(pairs)}
    found = rename(arrays, FAMILIES[family])
    assert list(found) == list(pairs.values())
    assert all(found[pairs[key]] is arrays[key] for key in pairs)


def test_two_keys_of_one_name_stay_two():
    arrays = {"fc.weight": np.zeros(1), "head.2.weight": np.ones(1)}
    assert rename(arrays, FAMILIES["resnet"]) == arrays


def _foreign(name, changes, **arguments):
    """The golden state dict of a model under other names."""
    state = files.golden_state(name, **arguments)
    for old, new in changes:
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


def _timm_mobilenetv2(state):
    """Renames a state dict to timm's names, by the table read backwards."""
    back = {row.original: row.foreign for row in FAMILIES["mobilenetv2"].renames}
    return {back[key]: value for key, value in state.items()}


def test_weights_of_other_libraries():
    facebook = [
        ("stem.", "patch_embed."), ("linear_tokens", "attn"), ("mlp_channels", "mlp"),
        (".ls", ".gamma_"),
    ]  # fmt: skip
    resmlp = _foreign("resmlp_12_224", facebook, image_size=32, num_classes=3)
    resmlp = {k: v.reshape(-1) if k.endswith(("alpha", "beta")) else v for k, v in resmlp.items()}
    assert resmlp["blocks.0.norm1.alpha"].shape == (384,)
    mobilenet = _timm_mobilenetv2(files.golden_state("mobilenetv2_035", num_classes=3))
    assert "blocks.6.0.conv_pwl.weight" in mobilenet
    for name, state, key, foreign in (
        ("resmlp_12_224", resmlp, "blocks.0.ls1", "blocks.0.gamma_1"),
        ("resnet18", _foreign("resnet18", [("head.2", "fc")], width=8, num_classes=3), 0, 0),
        ("mobilenetv2_035", mobilenet, "features.18.0.weight", "conv_head.weight"),
    ):
        found = find_model(state)
        assert found.model.name == name and found.model.num_classes == 3
        params, stats = found.model.abstract()
        table = get_family(name).table
        to_jax(found.state_dict, table, {"params": params, "stats": stats})
        if key:
            shape = state[foreign].shape
            np.testing.assert_array_equal(found.state_dict[key], golden_tensor(key, shape))
