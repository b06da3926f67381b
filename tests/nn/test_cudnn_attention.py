"""Attention by cuDNN: what it takes, its padding, and that other platforms keep their programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from noah_jax import create_model
from noah_jax.errors import InputError
from noah_jax.nn import attention, cudnn_attention

SIZES = [(9, 9), (12, 5), (6, 6)]  # tokens and other tokens


@pytest.fixture
def cudnn(monkeypatch):
    """JAX finds cuDNN, which need not be here, and every GPU that is here takes it."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    cudnn_attention._refusal.cache_clear()
    yield
    cudnn_attention._refusal.cache_clear()


@pytest.fixture
def no_cudnn(monkeypatch):
    def missing():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", missing)
    cudnn_attention._refusal.cache_clear()
    yield
    cudnn_attention._refusal.cache_clear()


def draw(tokens, others, dtype=jnp.bfloat16, *, batch=2, heads=2, channels=8):
    random = np.random.RandomState(0)
    counts = (tokens, others, others, tokens)
    arrays = (random.standard_normal((batch, n, heads, channels)) for n in counts)
    return [jnp.asarray(x, dtype) for x in arrays]


def both_passes(attend, query, keys, values, cotangent):
    out, pullback = jax.vjp(attend, query, keys, values)
    return out, *pullback(cotangent)


def lowered(f, *arguments, platform="cuda"):
    return jax.jit(f).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


padded = functools.partial(cudnn_attention.cudnn_attend, implementation="xla")
plain = functools.partial(attention.attend, implementation="xla")


@pytest.mark.parametrize(("tokens", "others"), SIZES)
def test_padding_changes_nothing(tokens, others):
    arguments = draw(tokens, others, jnp.float32)
    pair = (jax.jit(functools.partial(both_passes, f))(*arguments) for f in (padded, plain))
    for one, other in zip(*pair, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_gradients_are_as_near_to_the_float32_definition_as_the_plain_forms():
    arguments = draw(33, 33, channels=16)
    wide = [x.astype(jnp.float32) for x in arguments]
    definition = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    expected = jax.jit(functools.partial(both_passes, definition))(*wide)

    def errors(form):
        found = jax.jit(functools.partial(both_passes, form))(*arguments)
        return [float(jnp.abs(x - y).max() / y.std()) for x, y in zip(found, expected, strict=True)]

    assert max(*errors(padded), *errors(plain)) < 0.05


@pytest.mark.parametrize(("tokens", "others"), SIZES)
def test_only_gpus_run_it(tokens, others, cudnn):
    arguments = draw(tokens, others)
    step = functools.partial(both_passes, attention.attend)
    text = lowered(step, *arguments)
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    for platform in ("cpu", "tpu"):
        assert "fmha" not in lowered(step, *arguments, platform=platform)
    # On a CPU not a bit changes.
    for one, other in zip(
        jax.jit(step)(*arguments),
        jax.jit(functools.partial(both_passes, plain))(*arguments),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_odd_numbers_of_tokens_are_padded_and_told(cudnn):
    for tokens, padded_tokens, mask in ((197, 198, "PADDING"), (196, 196, "NO_MASK")):
        query = jax.ShapeDtypeStruct((4, tokens, 3, 64), jnp.bfloat16)
        text = lowered(attention.attend, query, query, query)
        call = next(line for line in text.splitlines() if "__cudnn$fmha" in line)
        assert f"tensor<4x{padded_tokens}x3x64xbf16>" in call and mask in call


@pytest.mark.parametrize(
    ("dtype", "channels", "implementation", "variable"),
    [
        (jnp.float32, 64, "auto", None),  # cuDNN takes 16 bits alone
        (jnp.bfloat16, 12, "auto", None),  # no multiple of 8
        (jnp.bfloat16, 512, "auto", None),
        (jnp.bfloat16, 64, "xla", None),
        (jnp.bfloat16, 64, "auto", "xla"),
    ],
)
def test_what_it_does_not_take(dtype, channels, implementation, variable, cudnn, monkeypatch):
    if variable:
        monkeypatch.setenv("NOAH_ATTENTION", variable)
    query = jax.ShapeDtypeStruct((2, 6, 2, channels), dtype)
    attend = functools.partial(attention.attend, implementation=implementation)
    assert "fmha" not in lowered(attend, query, query, query)


def test_without_cudnn_it_is_the_plain_form(no_cudnn):
    query = jax.ShapeDtypeStruct((2, 6, 2, 64), jnp.bfloat16)
    assert "fmha" not in lowered(attention.attend, query, query, query)
    assert cudnn_attention.cudnn_is_missing()


def test_a_batch_that_the_devices_do_not_divide_is_left_to_xla(cudnn):
    query = jax.ShapeDtypeStruct((6, 6, 2, 64), jnp.bfloat16)
    auto = (jax.sharding.AxisType.Auto,)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((4,), ("data",), auto)):
        assert not cudnn_attention.cudnn_takes(query, query)


def test_inside_a_shard_map_it_is_the_plain_form(cudnn):
    query = jax.ShapeDtypeStruct((4, 6, 2, 64), jnp.bfloat16)
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    step = jax.shard_map(
        lambda q: attention.attend(q, q, q),
        mesh=mesh,
        in_specs=jax.P("data"),
        out_specs=jax.P("data"),
    )
    assert "fmha" not in lowered(step, query)


def test_a_wrong_choice_says_what_is_right(monkeypatch):
    monkeypatch.setenv("NOAH_ATTENTION", "flash")
    with pytest.raises(InputError, match="must be auto or xla, got 'flash'"):
        attention.attend(*draw(4, 4)[:3])


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("noah_deit_tiny_patch16_224", {"width": 16, "num_heads": 2, "depth": 1}),
        ("deit_tiny_patch16_224", {"width": 16, "num_heads": 2, "depth": 1}),
        ("noah_pvt_tiny", {"widths": (8,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4}),
    ],
)
def test_models_train_with_it_and_portable_ones_do_not(name, arguments, remat, cudnn):
    options = {"num_classes": 3, "image_size": 32, "remat": remat, "dtype": "bfloat16"}
    model = create_model(name, **options, **arguments)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def step(model, params, stats, images):
        return jax.grad(lambda p: model.apply(p, stats, images, train=True)[0].sum())(params)

    depth = 4 if "pvt" in name else 1
    for one, calls in ((model, depth), (model.portable(), 0)):
        text = lowered(functools.partial(step, one), *one.abstract(), images)
        assert text.count("__cudnn$fmhaSoftmaxBackward") == calls
