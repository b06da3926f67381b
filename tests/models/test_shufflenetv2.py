import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.models import create_model
from noah_jax.models.shufflenetv2.modeling import ShuffleUnit
from tests.models import cnn_checks
from tests.models.torch_rules import check_counts

COUNTS = {
    "shufflenetv2_050": 1_366_792,
    "shufflenetv2_100": 2_278_604,
    "shufflenetv2_150": 3_503_624,
    "shufflenetv2_200": 7_393_996,
    "noah_shufflenetv2_050": 1_381_792,
    "noah_shufflenetv2_100": 2_293_604,
    "noah_shufflenetv2_150": 3_518_624,
    "noah_shufflenetv2_200": 7_408_996,
}


def test_every_name_has_its_count():
    check_counts("shufflenetv2", COUNTS)


def test_state_dict_has_the_names_of_torchvision():
    shapes = cnn_checks.torch_shapes("noah_shufflenetv2_100")
    assert shapes["conv1.0.weight"] == (24, 3, 3, 3)
    assert shapes["stage2.0.branch1.0.weight"] == (24, 1, 3, 3)
    assert shapes["stage2.0.branch1.2.weight"] == (58, 24, 1, 1)
    assert shapes["stage2.0.branch2.0.weight"] == (58, 24, 1, 1)
    assert shapes["stage3.7.branch2.3.weight"] == (116, 1, 3, 3)
    assert shapes["stage4.3.branch2.6.running_var"] == (232,)
    assert "stage4.3.branch1.0.weight" not in shapes
    assert shapes["conv5.0.weight"] == (1024, 464, 1, 1)
    assert shapes["head.value.weight"] == (8000, 96, 1, 1)
    assert cnn_checks.torch_shapes("shufflenetv2_200")["head.2.weight"] == (1000, 2048)


def test_any_image_size_works():
    cnn_checks.check_any_size("shufflenetv2_050", 1024)
    probed = cnn_checks.map_shape("shufflenetv2_050", (65, 32), head=cnn_checks.MapProbe())
    assert probed == (2, 3, 1, 1024)


@pytest.mark.slow
def test_trains_and_evaluates():
    cnn_checks.train_and_evaluate("noah_shufflenetv2_050")


def test_shuffle_alternates_the_channels_of_the_halves():
    unit = ShuffleUnit(6, 6, 1, lambda *args, **kwargs: lambda x, *, train: -x)
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    # Three layers negate the second half three times.
    np.testing.assert_array_equal(unit(x, train=False).ravel(), [0, -3, 1, -4, 2, -5])


def test_bad_arguments_say_so():
    with pytest.raises(ValueError, match="takes no argument 'width_mult'"):
        create_model("shufflenetv2_050", width_mult=0.5)
    with pytest.raises(ValueError, match="key_ratio must lie in"):
        create_model("noah_shufflenetv2_050", key_ratio=1.0)
    model = create_model("shufflenetv2_050", image_size=32, batch_norm_group=3)
    images = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    with pytest.raises(ValueError, match="batch_norm_group=3 does not divide"):
        jax.eval_shape(lambda *args: model.apply(*args, train=True), *model.abstract(), images)
