"""The registry, the arguments of `create_model`, and the boundary's errors."""

import doctest
import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from noah_jax import create_model, list_models
from noah_jax.models import create


def test_the_example_of_create_model():
    results = doctest.testmod(create)
    assert results.attempted and not results.failed


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model 'noah_resnet5'.*noah_resnet50"):
        create_model("noah_resnet5")
    with pytest.raises(ValueError, match="list_models"):
        create_model("qqqq")


def test_list_models_takes_a_pattern():
    assert list_models("noah_resnet1*") == ["noah_resnet101", "noah_resnet152", "noah_resnet18"]
    assert len(list_models("*resnet*")) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_class=3), "no argument 'num_class'; did you mean 'num_classes'"),
        (dict(num_classes=0), "num_classes must be at least 1"),
        (dict(head="nose"), "head must be 'linear', 'noah'"),
        (dict(head="noah", head_num=7), "head_num=7"),
        (dict(image_size=(1, 2, 3)), "image_size"),
        (dict(image_size=0), "image_size"),
        (dict(drop_rate=0.1), "no dropout in its backbone.*head_drop_rate"),
        (dict(drop_path_rate=0.1), "no stochastic depth in its backbone"),
        (dict(dtype="int8"), "dtype must be one of float32, bfloat16"),
        (dict(dtype="float64"), "JAX_ENABLE_X64"),
        (dict(pre_logits=True), "no argument 'pre_logits'.* and depths, stem, width$"),
        (dict(block=None), "no argument 'block'"),
        (dict(width=0), "width must be a positive integer, such as 64, got 0"),
        (dict(width=8.0), "width must be a positive integer, such as 64, got 8.0"),
        (dict(depths=(1, 2, 3)), r"depths must be 4 positive integers, such as \(2, 2, 2, 2\)"),
        (dict(depths=2), "depths must be 4 positive integers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model("resnet18", **arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("deit_tiny_patch16_224", dict(width=160), "160 does not divide among 3 attention heads"),
        ("deit_tiny_patch16_224", dict(pre_logits="no"), "pre_logits must be"),
        ("deit_tiny_patch16_224", dict(mlp_ratio=-1), "mlp_ratio must be a positive number"),
        ("pvt_tiny", dict(num_heads=(1, 2, 3, 8)), "320 does not divide among 3 attention heads"),
        ("gmlp_ti16_224", dict(channel_ratio=129 / 128), "129 hidden channels cannot be halved"),
        ("resmlp_12_224", dict(token_ratio=1), "no argument 'token_ratio'"),
        ("shufflenetv2_050", dict(widths=(8, 9, 16, 32)), "must be even numbers of channels"),
        ("mobilenetv2_100", dict(width_mult=float("nan")), "width_mult must be a positive number"),
        ("mobilenetv3_small", dict(width_mult=True), "width_mult must be a positive number"),
    ],
)
def test_bad_dimensions(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **arguments)


# A member of every family that nobody published: its name, its dimensions, a parameter and the
# shape that this must have.
_UNPUBLISHED = [
    ("resnet50", dict(width=4, depths=(1, 1, 2, 1)), "layer3/1/conv2", (3, 3, 16, 16)),
    ("mobilenetv2_100", dict(width_mult=1.5), "layers/18/conv", (1, 1, 480, 1920)),
    ("mobilenetv3_small", dict(width_mult=0.25), "layers/5/project/conv", (1, 1, 64, 16)),
    (
        "shufflenetv2_050",
        dict(widths=(8, 12, 16, 32), depths=(1, 2, 1)),
        "stage3/1/branch2/2/conv",
        (1, 1, 6, 6),
    ),
    (
        "deit_tiny_patch16_224",
        dict(width=32, depth=2, num_heads=2, mlp_ratio=3.5, patch_size=8, pre_logits=5),
        "blocks/1/mlp/fc1",
        (32, 112),
    ),
    (
        "vit_small_patch14_reg4_dinov2",
        dict(width=32, depth=2, num_heads=2, mlp_ratio=3.5, patch_size=7, registers=2),
        "blocks/1/mlp/fc1",
        (32, 112),
    ),
    (
        "pvt_tiny",
        dict(
            widths=(8, 16, 24, 32),
            depths=(1, 2, 1, 1),
            num_heads=(1, 2, 3, 4),
            mlp_ratios=(1, 2, 3.5, 4),
            reductions=(4, 2, 2, 1),
        ),
        "block3/0/attn/sr",
        (2, 2, 24, 24),
    ),
    (
        "mixer_s16_224",
        dict(width=24, depth=1, patch_size=32, token_ratio=2, channel_ratio=1.5),
        "blocks/0/mlp_tokens/fc1",
        (49, 48),
    ),
    ("gmixer_12_224", dict(depth=1, channel_ratio=2), "blocks/0/mlp_channels/fc2", (384, 384)),
    ("resmlp_12_224", dict(depth=1, channel_ratio=2), "blocks/0/mlp_channels/fc1", (384, 768)),
    ("gmlp_ti16_224", dict(depth=1, channel_ratio=2), "blocks/0/mlp_channels/fc2", (128, 128)),
]


@pytest.mark.parametrize(("name", "dimensions", "path", "shape"), _UNPUBLISHED)
def test_dimensions_of_ones_own(name, dimensions, path, shape):
    model = create_model(name, num_classes=3, **dimensions)
    params, _ = model.abstract()
    assert flatten_dict(params, sep="/")[f"{path}/kernel"].shape == shape
    # What stands in model.json makes the model again; JSON knows no tuples.
    again = create_model(name, **json.loads(json.dumps(model.arguments)))
    assert again.arguments == model.arguments
    assert again.abstract() == model.abstract()


def test_head_by_argument_equals_head_by_name():
    by_name, by_argument = create_model("noah_resnet50"), create_model("resnet50", head="noah")
    assert jax.tree.structure(by_name.abstract()) == jax.tree.structure(by_argument.abstract())
    assert create_model("noah_resnet50", head="linear").num_params == 25557032


@pytest.mark.parametrize(
    ("name", "dimensions", "shape"),
    [
        ("noah_resnet18", dict(depths=(1, 1, 1, 1)), (2, 3, 2, 512)),
        ("mobilenetv2_035", {}, (2, 3, 2, 1280)),
        ("noah_mobilenetv3_small", {}, (2, 3, 2, 1280)),
        ("mobilenetv3_small", {}, (2, 3, 2, 576)),  # before the pooling
        ("shufflenetv2_050", dict(depths=(1, 1, 1)), (2, 3, 2, 1024)),
        ("deit_tiny_patch16_224", dict(depth=1), (2, 6, 4, 192)),
        ("noah_deit_tiny_050_patch16_224", dict(depth=1), (2, 6, 4, 192)),
        ("noah_vit_small_patch14_reg4_dinov2", dict(depth=1), (2, 6, 4, 384)),
        ("pvt_tiny", dict(depths=(1, 1, 1, 1)), (2, 3, 2, 512)),
        ("noah_pvt_tiny", dict(depths=(1, 1, 1, 1)), (2, 3, 2, 512)),
        ("mixer_s16_224", dict(depth=1), (2, 6, 4, 512)),
    ],
)
def test_features_only(name, dimensions, shape):
    size = (84, 56) if "patch14" in name else (96, 64)
    whole = create_model(name, image_size=size, **dimensions)
    model = create_model(name, image_size=size, features_only=True, **dimensions)
    params, stats = model.abstract()
    assert "head" not in params
    assert params.keys() <= whole.abstract()[0].keys()
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    for train in (False, True):
        features, _ = jax.eval_shape(
            lambda p, s, x, train=train: model.apply(p, s, x, train=train), params, stats, images
        )
        assert features.shape == shape
    assert jax.eval_shape(whole.features, *whole.abstract(), images).shape == shape


@pytest.mark.slow
def test_features_only_gives_what_the_head_takes():
    arguments = dict(num_classes=3, stem="small", width=4, head_num=2)
    whole = create_model("noah_resnet18", **arguments)
    params, stats = whole.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    backbone = create_model("noah_resnet18", features_only=True, **arguments)
    head = params.pop("head")
    features, _ = backbone.apply(params, stats, images, train=False)
    with pytest.raises(ValueError, match="has no head, which has no attention over"):
        backbone.attention(params, stats, images, jnp.array([0]))
    params["head"] = head
    assert jnp.array_equal(features, whole.features(params, stats, images))


@pytest.mark.slow
def test_numpy_weights_are_not_written_to():
    model = create_model("resnet18", num_classes=3, stem="small", width=4)
    params, stats = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    _, new = model.apply(params, stats, images, train=True)
    assert np.all(stats["bn1"]["mean"] == 0) and np.any(new["bn1"]["mean"] != 0)


def test_large_models_take_seconds_to_describe():
    start = time.process_time()
    model = create_model("noah_pvt_huge_v2")
    jax.eval_shape(model.init, jax.random.key(0))
    assert time.process_time() - start < 30  # 6 on an idle machine


@pytest.mark.slow
def test_materialising_takes_the_parameters_memory():
    program = """
import resource, jax
from noah_jax import create_model
model = create_model("noah_pvt_huge_v2")
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
jax.block_until_ready(model.init(jax.random.key(0)))
print((peak() - before) / (4 * model.num_params))
"""
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert 1 <= float(out.stdout) <= 1.3


class _MaxHead(nnx.Module):
    """A head of the user's own: the maximum over the positions and a linear layer."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, features, *, train, key=None):
        return self.linear(features.max((1, 2)))


def test_any_module_can_be_the_head():
    head = _MaxHead(nnx.Rngs(0))
    small = dict(stem="small", width=4, depths=(1, 1, 1, 1))
    model = create_model("resnet18", num_classes=3, head=head, **small)
    params, stats = jax.jit(model.init)(jax.random.key(0))
    images = jnp.ones((2, 16, 16, 3))
    logits, _ = jax.jit(model.apply, static_argnames="train")(params, stats, images, train=False)
    expected = head(jax.jit(model.features)(params, stats, images), train=False)
    assert logits.shape == (2, 3)
    assert jnp.allclose(logits, expected)
    with pytest.raises(ValueError, match="no attention"):
        model.attention(params, stats, images, jnp.array([0]))


def test_predict_gives_the_logits_of_pixels_and_of_normalised_images():
    model = create_model(
        "noah_resnet18", image_size=32, num_classes=3, stem="small", width=4, depths=(1, 1, 1, 1)
    )
    weights = jax.jit(model.init)(jax.random.key(0))
    apply = jax.jit(model.apply, static_argnames="train")
    pixels = np.random.RandomState(0).randint(0, 256, (2, 32, 32, 3), np.uint8)

    def expected(mean, std):
        images = ((pixels / 255 - np.array(mean)) / np.array(std)).astype(np.float32)
        return images, apply(*weights, images, train=False)[0]

    images, logits = expected(model.mean, model.std)
    np.testing.assert_allclose(model.predict(*weights, images), logits, atol=1e-4)
    np.testing.assert_allclose(model.predict(*weights, pixels), logits, atol=1e-4)
    _, others = expected([0.1] * 3, [0.3] * 3)
    found = model.predict(*weights, pixels, mean=[0.1] * 3, std=[0.3] * 3)
    np.testing.assert_allclose(found, others, atol=1e-4)
    assert np.abs(others - logits).max() > 1e-2
    # The portable copy has its own program, of its own head.
    assert model.portable().predict_step is not model.predict_step
    for bad, words in ((pixels.astype(np.int32), "got int32"), (pixels[0], "got shape")):
        with pytest.raises(ValueError, match=words):
            model.predict(*weights, bad)


def test_evaluation_options_compile_and_keep_the_numbers():
    model = create_model("noah_resmlp_12_224", image_size=32, num_classes=3)
    options = model.evaluation_options()
    assert (options is not None) == (jax.default_backend() == "cpu")
    x = jax.random.normal(jax.random.key(0), (64, 256))
    product = jax.jit(lambda x: x @ x.T, compiler_options=options)(x)
    np.testing.assert_allclose(product, np.asarray(x) @ np.asarray(x).T, atol=1e-3)
