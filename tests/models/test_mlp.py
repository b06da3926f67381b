"""The MLP family: parameter counts, gates, published facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax.models import get_architecture
from noah_jax.models.family import IMAGENET_MEAN, IMAGENET_STD
from noah_jax.models.mlp.modeling import SpatialGate
from tests.models.torch_rules import check_counts
from tests.models.vit_checks import random_images, small_model

NUM_PARAMS = {
    "gmixer_12_224": 12_701_080,
    "gmixer_24_224": 24_721_096,
    "gmlp_b16_224": 73_075_392,
    "gmlp_s16_224": 19_422_656,
    "gmlp_ti16_050_224": 2_407_424,
    "gmlp_ti16_075_224": 3_860_896,
    "gmlp_ti16_224": 5_867_328,
    "mixer_b16_224": 59_880_472,
    "mixer_b16_224_in21k": 75_908_739,
    "mixer_b16_224_miil": 59_880_472,
    "mixer_b16_224_miil_in21k": 67_740_421,
    "mixer_b32_224": 60_293_428,
    "mixer_l16_224": 208_196_168,
    "mixer_l16_224_in21k": 229_560_243,
    "mixer_l32_224": 206_939_264,
    "mixer_s16_050_224": 5_071_112,
    "mixer_s16_075_224": 10_751_112,
    "mixer_s16_224": 18_528_264,
    "mixer_s32_224": 19_104_624,
    "noah_gmixer_12_224": 12_708_080,
    "noah_gmixer_24_224": 24_728_096,
    "noah_gmlp_b16_224": 73_082_392,
    "noah_gmlp_s16_224": 19_429_656,
    "noah_gmlp_ti16_050_224": 2_414_424,
    "noah_gmlp_ti16_075_224": 3_867_896,
    "noah_gmlp_ti16_224": 5_874_328,
    "noah_mixer_b16_224": 59_887_472,
    "noah_mixer_b16_224_in21k": 76_061_640,
    "noah_mixer_b16_224_miil": 59_887_472,
    "noah_mixer_b16_224_miil_in21k": 67_818_968,
    "noah_mixer_b32_224": 60_300_428,
    "noah_mixer_l16_224": 208_203_168,
    "noah_mixer_l16_224_in21k": 229_713_144,
    "noah_mixer_l32_224": 206_946_264,
    "noah_mixer_s16_050_224": 5_078_112,
    "noah_mixer_s16_075_224": 10_758_112,
    "noah_mixer_s16_224": 18_535_264,
    "noah_mixer_s32_224": 19_111_624,
    "noah_resmlp_12_224": 15_357_872,
    "noah_resmlp_12_distilled_224": 15_357_872,
    "noah_resmlp_24_224": 30_027_680,
    "noah_resmlp_24_distilled_224": 30_027_680,
    "noah_resmlp_36_224": 44_697_488,
    "noah_resmlp_36_distilled_224": 44_697_488,
    "noah_resmlp_big_24_224": 129_145_280,
    "noah_resmlp_big_24_224_in22ft1k": 129_145_280,
    "noah_resmlp_big_24_distilled_224": 129_145_280,
    "resmlp_12_224": 15_350_872,
    "resmlp_12_distilled_224": 15_350_872,
    "resmlp_24_224": 30_020_680,
    "resmlp_24_distilled_224": 30_020_680,
    "resmlp_36_224": 44_690_488,
    "resmlp_36_distilled_224": 44_690_488,
    "resmlp_big_24_224": 129_138_280,
    "resmlp_big_24_224_in22ft1k": 129_138_280,
    "resmlp_big_24_distilled_224": 129_138_280,
}
NUM_CLASSES = {"in21k": 21843, "miil_in21k": 11221}


def test_counts():
    check_counts("mlp", NUM_PARAMS)


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_published_settings(name):
    model = get_architecture(name)
    assert model.num_classes == NUM_CLASSES.get(name.partition("16_224_")[2], 1000)
    assert model.image_size == (224, 224)
    if "miil" in name:
        assert (model.mean, model.std) == ((0, 0, 0), (1, 1, 1))
    elif "gmixer" in name or "resmlp" in name:
        assert (model.mean, model.std) == (IMAGENET_MEAN, IMAGENET_STD)
    else:
        assert model.mean == model.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("kind", ["mixer", "gmixer", "resmlp", "gmlp"])
def test_features_are_the_map(kind):
    for head in ("linear", "noah"):
        model = small_model(kind, head, image_size=(32, 64))
        images = random_images(height=32)
        features = jax.eval_shape(model.features, *model.abstract(), images)
        assert features.shape == (2, 2, 4, 32)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("resmlp_12_224", 1e-4),
        ("resmlp_24_224", 1e-5),
        ("resmlp_36_224", 1e-6),
        ("resmlp_big_24_224", 1e-6),
    ],
)
def test_layer_scale(name, scale):
    assert get_architecture(name).build.keywords["block"].keywords["layer_scale"] == scale


def test_epsilons():
    model = small_model("gmlp")
    module = model._merge(*model.abstract())
    assert module.norm.epsilon == module.blocks[0].norm.epsilon == 1e-6
    assert module.blocks[0].mlp_channels.gate.norm.epsilon == 1e-5


def test_spatial_gate_multiplies_the_first_half():
    gate = SpatialGate(192, 16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 16, 192))
    np.testing.assert_allclose(gate(x), x[..., :96], atol=1e-4)  # starts as times one
    gate.proj.kernel[...] = jnp.zeros((16, 16))
    gate.proj.bias[...] = jnp.arange(16.0)
    np.testing.assert_allclose(gate(x), x[..., :96] * jnp.arange(16.0)[:, None], rtol=1e-6)
