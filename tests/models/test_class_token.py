"""Class tokens beside heads that do not read them, and linear heads without one."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from noah_jax import create_model, load_model
from noah_jax.errors import InputError
from noah_jax.pytorch.save import make_state_dict

FAMILIES = {
    "deit_tiny_patch16_224": dict(width=16, depth=1, num_heads=2, pre_logits=False),
    "pvt_tiny": dict(widths=(4, 4, 8, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 2)),
}


def _model(name: str, **arguments):
    return create_model(name, num_classes=3, image_size=64, **FAMILIES[name], **arguments)


@pytest.fixture
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, 64, 64, 3))


@pytest.fixture(params=["deit_tiny_patch16_224", pytest.param("pvt_tiny", marks=pytest.mark.slow)])
def name(request) -> str:
    return request.param


def _encode(model, params, stats, images):
    return jax.jit(model.encode)(params, stats, images)


def _logits(model, params, stats, images):
    return jax.jit(model.logits)(params, stats, images)


def test_other_heads_read_the_map_of_a_backbone_with_a_class_token(name, images, tmp_path):
    linear, noah = _model(name), _model(name, head="noah", class_token=True)
    params, stats = jax.jit(linear.init)(jax.random.key(0))
    feature_map, token = _encode(linear, params, stats, images)
    expected = linear.apply_head(params["head"], {}, token, train=False)[0]
    logits = _logits(linear, params, stats, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    params["head"], _ = jax.jit(noah.init_head)(jax.random.key(2))
    expected = noah.apply_head(params["head"], {}, feature_map, train=False)[0]
    logits = _logits(noah, params, stats, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    # A PyTorch file tells of the class token.
    file = tmp_path / "weights.safetensors"
    save_file(make_state_dict(noah, params, stats), file, metadata={"model": name})
    loaded, own, _ = load_model(str(file))
    assert loaded.arguments["class_token"] and loaded.arguments["head"] == "noah"
    jax.tree.map(np.testing.assert_array_equal, own, params)


def test_a_linear_head_without_a_class_token_reads_the_mean(images):
    model = _model("deit_tiny_patch16_224", class_token=False)
    params, stats = jax.jit(model.init)(jax.random.key(0))
    assert "cls_token" not in params
    feature_map, token = _encode(model, params, stats, images)
    assert token is None
    layer = params["head"]["linear"]
    expected = feature_map.mean((1, 2)) @ layer["kernel"] + layer["bias"]
    logits = _logits(model, params, stats, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_anything_but_a_truth_value_is_refused(name):
    with pytest.raises(InputError, match="class_token must be True or False, got 'yes'"):
        _model(name, class_token="yes")
