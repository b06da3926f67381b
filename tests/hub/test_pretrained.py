"""Published weights by the name of their model."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load

from noah_jax import create_model, load_model
from noah_jax.errors import InputError
from noah_jax.hub.names import is_elsewhere
from noah_jax.models import list_models
from noah_jax.models.__main__ import main as models_main
from noah_jax.models.pretrained import default_source, preprocessing_of, pretrained_weights
from noah_jax.pytorch.timm_names import own_name
from tests.hub.conftest import SIZES
from tests.hub.fake_hub import Repository

SMALL = {key: SIZES[key] for key in ("width", "image_size")}


@pytest.fixture
def repository(hub, weights, timm_config):
    contents = {"model.safetensors": weights, "config.json": timm_config}
    hub.repositories["timm/resnet18.a1_in1k"] = Repository(contents)


def test_the_table():
    rows = pretrained_weights()
    assert {row.name for row in rows} <= set(list_models())
    assert len({(row.name, row.source) for row in rows}) == len(rows)
    for row in rows:
        assert is_elsewhere(row.source) and row.image_size >= 160
        assert row.top1 is None or 50 < row.top1 < 90
        if row.source.startswith("hf://timm/"):
            own_name(row.source.removeprefix("hf://timm/"))
        if row.source.startswith("https"):
            assert row.preprocessing.keys() == {"mean", "std", "resize", "crop", "interpolation"}
    assert sum(row.source.startswith("released://") for row in rows) == 52
    assert default_source("resnet18") == "hf://timm/resnet18.a1_in1k"
    assert default_source("shufflenetv2_050").endswith("/shufflenetv2_x0.5-f707e7126e.pth")
    assert default_source("noah_resnet50") == "released://noah_resnet50"
    url = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    assert preprocessing_of(url)["resize"] == 232


def test_models_without_published_weights():
    with pytest.raises(InputError, match="head='noah' with 'vit_small_patch14_dinov2' takes the"):
        default_source("noah_vit_small_patch14_dinov2")
    with pytest.raises(InputError, match="nobody published weights of mixer_s32_224"):
        default_source("mixer_s32_224")
    with pytest.raises(InputError, match="unknown model 'resnet19'"):
        default_source("resnet19")


def test_a_model_starts_at_published_weights(repository, weights, capsys):
    model = create_model("resnet18", pretrained=True, num_classes=5, **SMALL)
    params, stats = model.init(jax.random.key(0))
    expected = load_model("hf://timm/resnet18.a1_in1k")
    jax.tree.map(np.testing.assert_array_equal, (params, stats), expected[1:])
    assert model.class_names == expected[0].class_names
    assert model.mean == expected[0].mean == (0.5,) * 3
    assert capsys.readouterr().err == ""


def test_another_head_is_fresh(repository, weights, capsys):
    head = dict(head="noah", head_num=2, num_classes=3)
    model = create_model("resnet18", pretrained=True, **head, **SMALL)
    said = capsys.readouterr().err
    assert "resnet18: the head is fresh: linear of 5 classes there, NOAH with N=2" in said
    assert model.class_names is None
    (one, stats), (two, _) = (model.init(jax.random.key(seed)) for seed in (0, 1))
    backbone = load(weights)["layer1.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(one["layer1"]["0"]["conv1"]["kernel"], backbone)
    assert jax.tree.structure((one, stats)) == jax.tree.structure(model.abstract())
    different = one["head"]["query"]["kernel"] != two["head"]["query"]["kernel"]
    assert different.all()
    # Under `jit`, and the head alone, as everywhere else.
    head, _ = jax.jit(model.init_head)(jax.random.key(0))
    np.testing.assert_allclose(head["query"]["kernel"], one["head"]["query"]["kernel"], rtol=1e-6)


def test_weights_of_another_backbone(repository):
    source = "hf://timm/resnet18.a1_in1k"
    with pytest.raises(InputError, match=f"^{source}: resnet18 there does not fit"):
        create_model("resnet34", pretrained=source, num_classes=5, **SMALL)
    with pytest.raises(InputError, match=r"^hf://timm/none: there is no repository timm/none"):
        create_model("resnet34", pretrained="hf://timm/none")


def test_models_lists_them(capsys):
    assert models_main(["resnet50", "--pretrained"]) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "top-1", "side", "crop", "classes", "licence", "checkpoint"]
    assert first.split() == [
        *("resnet50", "80.38", "224", "0.95", "1000", "apache-2.0", "hf://timm/resnet50.a1_in1k")
    ]
    assert models_main(["noah_resnet18", "--pretrained", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["source"] == "released://noah_resnet18" and row["top1"] == 71.81
    assert models_main(["mixer_s32_224", "--pretrained"]) == 1
    assert models_main(["resnet50", "--json"]) == 1
