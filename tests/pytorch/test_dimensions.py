"""Unpublished members of the families are found from shapes alone."""

import gzip
import importlib.resources
import json

import jax
import numpy as np
import pytest

from noah_jax import list_models
from noah_jax.errors import ConversionError
from noah_jax.models import create_model, get_architecture, get_family
from noah_jax.models.shapes import ratio
from noah_jax.pytorch.dimensions import attention_heads, nearest
from noah_jax.pytorch.golden import golden_images
from noah_jax.pytorch.infer import find_model
from noah_jax.pytorch.mapping import to_jax, to_torch
from noah_jax.pytorch.reference import example_weights
from tests.helpers import original_models
from tests.pytorch.files import torch_files as files

QUICK = {"xla_backend_optimization_level": 0}


def test_published_models_have_no_other_dimensions(golden):
    with gzip.open(golden / "models.json.gz", "rt") as file:
        shapes = json.load(file)
    for name in original_models():
        architecture = get_architecture(name)
        state = files.empty_state(shapes[name]["state"])
        found, sizes = nearest(state, get_family(name))
        assert sizes == {} and get_architecture(found).dimensions == architecture.dimensions


# Names, and arguments that make unpublished models of them.
UNPUBLISHED = [
    ("resnet34", dict(width=24, depths=(3, 3, 3, 3), num_classes=10)),
    ("noah_resnet50", dict(width=16, depths=(1, 2, 1, 1), head_num=2, stem="small")),
    ("mobilenetv2_100", dict(width_mult=1.4)),
    ("noah_mobilenetv2_035", dict(width_mult=0.1, head_num=4, num_classes=5)),
    ("mobilenetv3_small", dict(width_mult=0.75)),
    ("noah_mobilenetv3_large", dict(width_mult=1.25, key_ratio=1 / 2)),
    ("shufflenetv2_050", dict(widths=(64, 128, 256, 512), num_classes=3)),
    ("noah_shufflenetv2_050", dict(depths=(2, 3, 2))),
    ("deit_tiny_075_patch16_224", dict(width=160, depth=10, num_heads=2)),
    ("deit_tiny_075_patch16_224", dict(width=120, pre_logits=64, image_size=64)),
    (
        "noah_deit_small_patch16_224",
        dict(width=320, num_heads=5, image_size=128, patch_size=8, mlp_ratio=3),
    ),
    # Half of 90 channels is not a multiple of the published N, 4.
    ("noah_deit_tiny_050_patch16_224", dict(width=90, pre_logits=False, head_num=5)),
    ("pvt_tiny_050", dict(widths=(40, 80, 160, 256), mlp_ratios=(8, 8, 4, 2))),
    ("noah_pvt_small", dict(depths=(3, 4, 5, 3), reductions=(8, 4, 2, 2), image_size=128)),
    ("mixer_s16_075_224", dict(width=320, depth=6, num_classes=21843)),
    ("noah_mixer_s16_050_224", dict(depth=4, patch_size=8, token_ratio=1 / 4)),
    ("noah_gmixer_12_224", dict(width=256, token_ratio=1 / 2)),
    ("resmlp_12_224", dict(depth=16, channel_ratio=3)),
    ("noah_resmlp_12_224", dict(width=392, head_num=2, key_ratio=1 / 4)),
    ("gmlp_ti16_224", dict(depth=20, patch_size=32)),
    ("noah_gmlp_ti16_050_224", dict(depth=3, channel_ratio=57 / 32, image_size=96)),
]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param(*case, marks=pytest.mark.slow) if i % 2 else case
        for i, case in enumerate(UNPUBLISHED)
    ],
)
def test_unpublished_members_of_the_families(name, arguments):
    model = create_model(name, **arguments)
    found = find_model(files.shape_only_state(model))
    given = {"stem": "imagenet"} if "resnet" in name else {}
    files.assert_same_model(found.model, create_model(name, **{**given, **arguments}))
    published = get_architecture(name).dimensions
    changed = {key for key, value in published.items() if model.arguments[key] != value}
    note = found.notes[0]
    assert note.startswith(f"no registered model has these dimensions: {name} with ")
    assert all(f"{key}=" in note for key in changed - {"num_heads"})
    assert any("attention heads: taken as" in note for note in found.notes) == any(
        key in arguments and "num_heads" in published for key in ("width", "widths")
    )


# Small unpublished models, whose weights are run.
SMALL = [
    ("noah_resnet18", dict(width=8, depths=(1, 1, 2, 1))),
    ("noah_shufflenetv2_050", dict(widths=(16, 24, 32, 64), depths=(1, 2, 1))),
    ("deit_tiny_050_patch16_224", dict(width=48, depth=2)),
    ("noah_pvt_tiny_050", dict(widths=(8, 16, 40, 64), depths=(1, 1, 1, 1))),
    ("noah_gmixer_12_224", dict(width=48, depth=2)),
]


@pytest.mark.parametrize(("name", "sizes"), SMALL)
def test_equal_logits(name, sizes):
    model = create_model(name, num_classes=3, image_size=32, **sizes)
    params, stats = example_weights(model)
    table = get_family(model.name).table
    given = {} if get_family(model.name).name in ("deit", "pvt", "mlp") else {"image_size": 32}
    found = find_model(to_torch({"params": params, "stats": stats}, table), arguments=given)
    abstract = dict(zip(("params", "stats"), found.model.abstract(), strict=True))
    tree = to_jax(found.state_dict, table, abstract)
    images = golden_images(32)
    logits = _logits(model, params, stats, images)
    assert found.model.image_size == (32, 32) and np.std(logits) > 0
    again = _logits(found.model, tree["params"], tree.get("stats", {}), images)
    np.testing.assert_array_equal(again, logits)


def _logits(model, params, stats, images):
    apply = jax.jit(model.apply, static_argnames="train", compiler_options=QUICK)
    return apply(params, stats, images, train=False)[0]


def _released() -> dict[str, float]:
    text = importlib.resources.files("noah_jax.models").joinpath("released.json").read_text()
    return {row["name"]: row["params_millions"] for row in json.loads(text)}


# Released files whose published sizes are not those of the original's code, with arguments that
# give the published sizes. What the files hold is not known. The size fits DeiT-B with the
# position embeddings of 384 pixels, and the small DeiTs without pre_logits. No usual dimensions
# give the size of gMLP; these do, to two decimals.
RELEASED = [
    ("deit_base_patch16_224", dict(image_size=384)),
    ("deit_tiny_075_patch16_224", dict(pre_logits=False)),
    ("deit_tiny_050_patch16_224", dict(pre_logits=False)),
    ("gmlp_ti16_075_224", dict(width=104, channel_ratio=540 / 104)),
]


@pytest.mark.parametrize("prefix", ["", "noah_"])
@pytest.mark.parametrize(("name", "arguments"), RELEASED)
def test_released_models_of_other_sizes(prefix, name, arguments):
    name = prefix + name
    published = _released()[name]
    model = create_model(name, **arguments)
    millions = model.num_params / 1e6
    assert abs(create_model(name).num_params / 1e6 - published) > 0.03
    assert 0 <= millions - published < 0.01 or round(millions, 2) == published
    found = find_model(files.shape_only_state(model), hint=name)
    files.assert_same_model(found.model, model)


def test_the_name_is_a_hint():
    model = create_model("resnet18", width=32)
    state = files.shape_only_state(model)
    assert find_model(state).model.name == "resnet18"
    # The hint names it if it has the same blocks, whatever its depths are.
    named = find_model(state, hint="resnet34.mine")
    assert named.model.name == "resnet34" and named.model.abstract() == model.abstract()
    assert "resnet34 with width=32, depths=(2, 2, 2, 2)" in named.notes[0]
    other = find_model(state, hint="resnet50")
    assert other.model.name == "resnet18"
    assert "called 'resnet50', but its shapes are nearest to resnet18" in other.notes[1]
    # If the caller names the model, unpublished dimensions must be given too.
    given = find_model(state, name="resnet18", arguments={"width": 32}).model
    assert given.abstract() == model.abstract()
    assert find_model(state, name="resnet18").model.arguments["width"] == 64


def test_what_shapes_do_not_tell_can_be_given():
    state = files.shape_only_state(create_model("deit_tiny_patch16_224", width=160, num_heads=5))
    found = find_model(state, arguments={"num_heads": 5})
    assert found.model.arguments["num_heads"] == 5
    assert not any("attention heads" in note for note in found.notes)
    with pytest.raises(ConversionError, match="160 does not divide among 3 attention heads"):
        find_model(state, arguments={"num_heads": 3})
    widths = dict(widths=(32, 96, 160, 512))
    assert attention_heads("pvt_small", widths)["num_heads"] == (1, 2, 5, 8)
    assert attention_heads("pvt_small", dict(widths=(32, 97, 160, 512)))["num_heads"][1] == 1
    rule = {64: 1, 96: 3, 192: 3, 256: 4, 288: 4, 384: 6, 768: 12, 1024: 16}
    for width, heads in rule.items():
        assert attention_heads("deit_small_patch16_224", {"width": width}) == {"num_heads": heads}


def test_a_broken_tensor_is_outvoted():
    state = files.shape_only_state(create_model("deit_tiny_patch16_224"))
    for key, shape in (
        ("patch_embed.proj.weight", (10**12, 3, 16, 16)),
        ("norm.weight", (16383,)),
        ("blocks.0.mlp.fc1.bias", (769,)),
    ):
        wrong = {**state, key: np.broadcast_to(np.float32(0), shape)}
        with pytest.raises(ConversionError, match=rf"deit_tiny_patch16_224 \({key}.* 1 problem"):
            find_model(wrong)


def test_hostile_numbers_of_blocks_are_not_built():
    state = files.shape_only_state(create_model("deit_tiny_patch16_224", depth=1))
    norm = state["norm.weight"]
    many = {**state, **{f"blocks.{i}.norm1.weight": norm for i in range(10**4)}}
    with pytest.raises(ConversionError, match=r"no registered model fits .* problem\(s\)"):
        find_model(many)


def test_dimensions_that_no_model_has():
    state = files.shape_only_state(create_model("gmlp_ti16_224", depth=1))
    odd = np.broadcast_to(np.float32(0), (129, 128))
    state |= {"blocks.0.mlp_channels.fc1.weight": odd, "blocks.0.mlp_channels.fc1.bias": odd[:, 0]}
    with pytest.raises(ConversionError, match=r"depth=1.*129 hidden channels cannot be halved"):
        find_model(state)


def test_ratios_survive_rounding():
    for whole in range(1, 120):
        assert all(int(whole * ratio(whole, part)) == part for part in range(1, 3 * whole))


# Changes of every published model; a family ignores arguments that it does not have.
VARIED = [
    dict(depth=7, width_mult=0.65, depths=(1, 2, 3, 1)),
    dict(width=120, width_mult=1.15, widths=(56, 96, 160, 320), patch_size=32, num_classes=11),
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", VARIED)
@pytest.mark.parametrize("name", list_models())
def test_variations_of_every_published_model(name, arguments):
    published = get_architecture(name).dimensions
    sizes = {key: value for key, value in arguments.items() if key in published}
    if "shufflenet" in name and "depths" in sizes:
        sizes["depths"] = sizes["depths"][:3]
    sizes |= attention_heads(name.removeprefix("noah_"), sizes)
    model = create_model(name, num_classes=arguments.get("num_classes"), **sizes)
    found = find_model(files.shape_only_state(model), hint=name)
    assert found.model.name == name and found.model.abstract() == model.abstract()
    inferred = {key: found.model.arguments[key] for key in published if key != "width_mult"}
    assert inferred == {key: model.arguments[key] for key in inferred}
