import jax
import jax.numpy as jnp
import pytest

from noah_jax.models import create_model
from noah_jax.models.mobilenetv2.modeling import round_channels
from tests.models import cnn_checks
from tests.models.torch_rules import check_counts

COUNTS = {
    "mobilenetv2_035": 1_677_128,
    "mobilenetv2_050": 1_968_680,
    "mobilenetv2_075": 2_636_424,
    "mobilenetv2_100": 3_504_872,
    "noah_mobilenetv2_035": 1_692_128,
    "noah_mobilenetv2_050": 1_983_680,
    "noah_mobilenetv2_075": 2_651_424,
    "noah_mobilenetv2_100": 3_519_872,
}


def test_every_name_has_its_count():
    check_counts("mobilenetv2", COUNTS)


@pytest.mark.parametrize(
    ("channels", "expected"), [(11.2, 16), (8.4, 8), (5.6, 8), (48.0, 48), (22.4, 24), (33.6, 32)]
)
def test_channels_round_to_eight_but_never_lose_a_tenth(channels, expected):
    assert round_channels(channels) == expected


def test_state_dict_has_the_names_of_torchvision():
    shapes = cnn_checks.torch_shapes("noah_mobilenetv2_100")
    assert shapes["features.0.0.weight"] == (32, 3, 3, 3)
    assert shapes["features.1.conv.0.0.weight"] == (32, 1, 3, 3)
    assert shapes["features.1.conv.1.weight"] == (16, 32, 1, 1)
    assert shapes["features.1.conv.2.running_var"] == (16,)
    assert shapes["features.17.conv.1.0.weight"] == (960, 1, 3, 3)
    assert shapes["features.17.conv.3.bias"] == (320,)
    assert shapes["features.18.0.weight"] == (1280, 320, 1, 1)
    assert shapes["head.query.weight"] == (8000, 40, 1, 1)
    assert cnn_checks.torch_shapes("mobilenetv2_100")["head.2.weight"] == (1000, 1280)


def test_any_image_size_works():
    cnn_checks.check_any_size("mobilenetv2_035", 1280)


@pytest.mark.slow
def test_trains_and_evaluates_with_dropout_in_the_head():
    cnn_checks.train_and_evaluate("noah_mobilenetv2_035", head_drop_rate=0.5)


def test_own_head_gets_the_map():
    model = create_model("mobilenetv2_035", image_size=64, head=cnn_checks.MapProbe())
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    params, stats = model.abstract()
    logits, _ = jax.eval_shape(lambda *args: model.apply(*args, train=False), params, stats, images)
    assert logits.shape == (2, 1280)


def test_bad_arguments_say_so():
    with pytest.raises(ValueError, match="no stochastic depth in its backbone"):
        create_model("mobilenetv2_035", drop_path_rate=0.1)
    with pytest.raises(ValueError, match="takes no argument 'widths'"):
        create_model("mobilenetv2_035", widths=(8, 8))
    with pytest.raises(ValueError, match="head_num=7 does not divide"):
        create_model("noah_mobilenetv2_035", head_num=7)
    cnn_checks.check_batch_norm_group("mobilenetv2_035")
