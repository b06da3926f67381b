import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noah_jax.models import create_model
from noah_jax.models.mobilenetv3.modeling import SqueezeExcite
from tests.models import cnn_checks
from tests.models.torch_rules import check_counts

COUNTS = {
    "mobilenetv3_small": 2_938_368,
    "mobilenetv3_large": 5_476_416,
    "noah_mobilenetv3_small": 2_953_368,
    "noah_mobilenetv3_large": 5_491_416,
}


def test_every_name_has_its_count():
    check_counts("mobilenetv3", COUNTS)


def test_state_dict_has_the_originals_names():
    shapes = cnn_checks.torch_shapes("mobilenetv3_small")
    assert shapes["features.1.conv.0.weight"] == (16, 16, 1, 1)
    assert shapes["features.4.conv.3.weight"] == (96, 1, 5, 5)
    assert shapes["features.4.conv.5.fc.0.weight"] == (24, 96)
    assert shapes["features.4.conv.5.fc.2.weight"] == (96, 24)
    assert shapes["features.11.conv.8.running_mean"] == (96,)
    assert shapes["classifier.1.weight"] == (1000, 1280)


@pytest.mark.parametrize(("name", "last"), [("mobilenetv3_small", 14), ("mobilenetv3_large", 18)])
def test_last_convolution_is_one_further_with_a_linear_head(name, last):
    hidden = 576 if name.endswith("small") else 960
    linear, noah = cnn_checks.torch_shapes(name), cnn_checks.torch_shapes(f"noah_{name}")
    assert linear[f"features.{last}.weight"] == (1280, hidden, 1, 1)
    assert noah[f"features.{last - 1}.weight"] == (1280, hidden, 1, 1)
    assert noah[f"features.{last - 1}.bias"] == (1280,)
    assert f"features.{last}.weight" not in noah
    assert noah["classifier.query.weight"] == (8000, 40, 1, 1)


def test_the_map_is_pooled_before_the_last_convolution_with_a_linear_head_only():
    assert cnn_checks.map_shape("mobilenetv3_small", (224, 224)) == (2, 7, 7, 576)
    assert cnn_checks.map_shape("noah_mobilenetv3_small", (224, 224)) == (2, 7, 7, 1280)
    probed = cnn_checks.map_shape("mobilenetv3_small", (65, 32), head=cnn_checks.MapProbe())
    assert probed == (2, 3, 1, 1280)


def test_squeeze_excite_gates_channels():
    gate = SqueezeExcite(8, jnp.float32, nnx.Rngs(0))
    gate.reduce.kernel[...] = jnp.zeros((8, 2)).at[0, 0].set(1).at[1, 1].set(1)
    gate.expand.kernel[...] = jnp.zeros((2, 8)).at[0, 2].set(1.5).at[1, 3].set(-9)
    x = jnp.ones((1, 2, 2, 8)).at[0, 0, 0, 0].set(5)  # channel 0 has mean 2, the others 1
    # relu6(3 + 1.5 * 2) / 6 = 1 for channel 2, relu6(3 - 9) / 6 = 0 for channel 3, else 1/2
    expected = np.asarray(x) * np.array([0.5, 0.5, 1, 0, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(gate(x), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "noah"])
def test_trains_and_evaluates(head):
    cnn_checks.train_and_evaluate(
        "mobilenetv3_small" if head == "linear" else "noah_mobilenetv3_small"
    )


def test_bad_arguments_say_so():
    with pytest.raises(ValueError, match="takes no argument 'stem'"):
        create_model("mobilenetv3_small", stem="small")
    with pytest.raises(ValueError, match="head_num=7 does not divide"):
        create_model("noah_mobilenetv3_large", head_num=7)
    cnn_checks.check_batch_norm_group("mobilenetv3_small")
