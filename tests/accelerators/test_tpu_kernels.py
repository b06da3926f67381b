"""The forms of the head's TPU kernels against the definition: layouts of the map, tiles, dtypes."""

import jax
import jax.numpy as jnp
import pytest

from tests.heads.noah.kernel_checks import assert_close, make_case, value_and_gradients

pytestmark = pytest.mark.tpu

TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
# What computes the head, and its shape: blocks, channels, classes, images, rows and columns, r.
FORMS = {
    "images last": ("tpu", (4, 192, 1000, 128, (7, 7), 0.5)),
    "images last, two tiles": ("tpu", (2, 32, 130, 256, (3, 5), 0.5)),
    "images last, wide blocks": ("tpu", (2, 576, 130, 128, (4, 4), 0.5)),
    "tiles": ("tpu", (4, 256, 1000, 64, (7, 7), 0.5)),
    "tiles of 8 images": ("tpu", (4, 64, 300, 8, (5, 5), 0.25)),
    "positions first": ("tpu_map", (4, 512, 1000, 32, (7, 7), 0.125)),
    "positions first, padded": ("tpu_map", (2, 96, 130, 24, (3, 5), 0.25)),
}


@pytest.mark.parametrize("precision", ["default", "highest"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(form, dtype, precision, kernel):
    name, (head_num, channels, classes, images, spatial, key_ratio) = FORMS[form]
    case = make_case(
        head_num, channels, classes, batch=images, spatial=spatial, key_ratio=key_ratio
    )
    options = {"key_ratio": key_ratio, "spatial_major": name == "tpu_map"}
    with jax.default_matmul_precision("highest"):
        expected = value_and_gradients(*case, implementation="reference", **options)
    with jax.default_matmul_precision(precision):
        implementation = kernel.replace("tpu", name)
        actual = value_and_gradients(
            *case, dtype=jnp.dtype(dtype), implementation=implementation, **options
        )
    exact = dtype == "float32" and precision == "highest"
    assert_close(actual, expected, TOLERANCES["float32" if exact else "bfloat16"])


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.4, "dropout_key": jax.random.key(5)},
        {"head_split": False},
        {"kv_split": False},
        {"head_split": False, "kv_split": False, "block_sizes": {"rows": 16 * 15}},
    ],
    ids=lambda options: " ".join(options),
)
def test_other_heads(options, kernel):
    switches = {key: value for key, value in options.items() if key.endswith("split")}
    case = make_case(2, 64, 300, batch=32, **switches)
    with jax.default_matmul_precision("highest"):
        actual = value_and_gradients(*case, implementation=kernel, **options)
        options = {key: value for key, value in options.items() if key != "block_sizes"}
        expected = value_and_gradients(*case, implementation="reference", **options)
    assert_close(actual, expected, 1e-5)
