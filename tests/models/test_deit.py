"""DeiT: parameter counts, class token, pre_logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax import create_model
from noah_jax.models import get_architecture
from tests.models.torch_rules import check_counts
from tests.models.vit_checks import random_images, random_params, small_model

NUM_PARAMS = {
    "deit_base_patch16_224": 86_567_656,
    "deit_base_patch16_384": 86_859_496,
    "deit_small_patch16_224": 22_050_664,
    "deit_tiny_050_patch16_224": 1_646_728,
    "deit_tiny_075_patch16_224": 3_368_824,
    "deit_tiny_patch16_224": 5_717_416,
    "noah_deit_base_patch16_224": 86_573_120,
    "noah_deit_base_patch16_384": 86_864_960,
    "noah_deit_small_patch16_224": 22_056_896,
    "noah_deit_tiny_050_patch16_224": 1_653_536,
    "noah_deit_tiny_075_patch16_224": 3_375_536,
    "noah_deit_tiny_patch16_224": 5_724_032,
}


def test_counts():
    check_counts("deit", NUM_PARAMS)


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_published_settings(name):
    published = get_architecture(name)
    assert published.num_classes == 1000
    assert published.image_size == ((384,) * 2 if name.endswith("384") else (224, 224))


def test_published_counts_are_without_pre_logits():
    # 1.53 and 1.54 million in the paper's table.
    model = create_model("deit_tiny_050_patch16_224", pre_logits=False)
    assert round(model.num_params / 1e6, 2) == 1.53
    model = create_model("noah_deit_tiny_050_patch16_224", pre_logits=False)
    assert round(model.num_params / 1e6, 2) == 1.54


def _features(model, **size):
    params, stats = model.abstract()
    return jax.eval_shape(model.features, params, stats, random_images(**size)).shape


def test_features_are_the_map():
    assert _features(small_model("deit", "linear")) == (2, 4, 4, 192)
    assert _features(small_model("deit", "noah")) == (2, 4, 4, 192)
    assert _features(small_model("deit", "noah", pre_logits=False)) == (2, 4, 4, 48)
    assert _features(small_model("deit", "linear", pre_logits=False)) == (2, 4, 4, 48)
    assert _features(small_model("deit", width=192)) == (2, 4, 4, 192)
    assert _features(small_model("deit", width=384, pre_logits=True)) == (2, 4, 4, 192)
    params, _ = small_model("deit", "linear").abstract()
    assert params["cls_token"].shape == (1, 1, 48)
    assert params["pos_embed"].shape == (1, 17, 48)
    params, _ = small_model("deit", "noah").abstract()
    assert "cls_token" not in params
    assert params["pos_embed"].shape == (1, 16, 48)
    assert "pre_logits" not in small_model("deit", width=192).abstract()[0]


def test_pre_logits_ends_in_tanh():
    model = small_model("deit", depth=0)
    params = random_params(model)
    params["pre_logits"]["bias"] = jnp.full(192, 0.5)
    params["pre_logits"]["kernel"] = jnp.zeros((48, 192))
    features = jax.jit(model.features)(params, {}, random_images())
    np.testing.assert_allclose(features, np.tanh(0.5), rtol=1e-6)


def test_the_map_keeps_its_orientation():
    """Row and column of a patch are those of its place in the map."""
    model = small_model("deit", image_size=(64, 96), depth=0, pre_logits=False)
    params = random_params(model)
    images = np.zeros((1, 64, 96, 3), np.float32)
    features = jax.jit(model.features)
    plain = np.asarray(features(params, {}, images))
    images[0, 16:32, 80:96] = 1
    change = np.abs(features(params, {}, images) - plain).max(-1)[0]
    assert np.argwhere(change > 0).tolist() == [[1, 5]]
