"""Every parameter's initial values against the original's initialiser."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.extend.random import define_prng_impl

from tests.helpers import original_models
from tests.models.torch_rules import (
    GOLDEN,
    MEMBERS,
    TRUNCATED_STD,
    cached_model,
    initialiser,
    initialisers,
    initialisers_text,
    read_sections,
)

LARGE = 2000  # values that show the shape of a distribution
SIGMAS = 5  # standard errors that an estimate may be off


def _mix(x):
    """Murmur3's finaliser: every bit of the result depends on every bit of `x`."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _bits(key, bit_width, shape):
    assert bit_width == 32
    count = jax.lax.iota(jnp.uint32, math.prod(shape)) * jnp.uint32(0x9E3779B9)
    return _mix(_mix(count ^ key[0]) + key[1]).reshape(shape)


# Random numbers that compile fast: with JAX's own, compiling one generator for every shape
# takes most of the tests' time.
QUICK_RANDOM = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: _bits(jnp.array([seed, 1]).astype(jnp.uint32), 32, (2,)),
    split=lambda key, shape: _bits(key ^ jnp.uint32(0xDEADBEEF), 32, (*shape, 2)),
    random_bits=_bits,
    fold_in=lambda key, data: _mix(key + _mix(jnp.uint32(data) + jnp.arange(2, dtype=jnp.uint32))),
    name="quick",
    tag="quick",
)


def _numbers(words: list[str]) -> dict[str, float]:
    return {key: float(value) for key, _, value in (word.partition("=") for word in words)}


def check(values: np.ndarray, text: str) -> None:
    """Fails unless the values look drawn as `text` says; see `torch_rules.initialiser`."""
    if " | " in text:
        for half, own in zip(np.split(values, 2, axis=-1), text.split(" | "), strict=True):
            check(half, own)
        return
    kind, *words = text.split()
    if kind == "constant":
        np.testing.assert_array_equal(values, np.float32(words[0]))
        return
    numbers = _numbers(words)
    bound = numbers.get("bound", math.inf)
    std = numbers["std"] if "std" in numbers else bound / math.sqrt(3)
    kurtosis = {"normal": 0.0, "uniform": -1.2, "truncated_normal": -0.634}[kind]

    x = values.astype(np.float64).ravel()
    assert np.isfinite(x).all()
    largest = np.abs(x).max()
    assert largest <= bound * (1 + 1e-5)
    assert abs(x.mean()) < SIGMAS * std / math.sqrt(x.size)
    assert abs(x.std() / std - 1) < SIGMAS * math.sqrt((kurtosis + 2) / (4 * x.size))
    if x.size < LARGE:
        return
    if kind == "normal":
        assert largest > 2.6 * std  # a cut at two sigma, rescaled, ends at 2.27
    else:
        assert largest > 0.95 * bound
    moment = np.mean((x / std) ** 4) / np.mean((x / std) ** 2) ** 2 - 3
    assert abs(moment - kurtosis) < SIGMAS * math.sqrt(24 / x.size)


def check_model(name: str, expected: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Draws a model's initial weights and checks every one of them."""
    params, stats = _init(name, "init")
    assert params.keys() == expected.keys()
    check_params(name, params, expected)
    for path, values in flatten_dict(stats, sep="/").items():
        np.testing.assert_array_equal(values, 1 if path.endswith("/var") else 0)


def _init(name: str, method: str) -> tuple[dict[str, np.ndarray], dict]:
    """Draws by `Model.init` or `Model.init_head`; parameters have the paths within the model."""
    draw = getattr(cached_model(name), method)
    if method == "init_head":
        draw = jax.jit(draw)  # leaves the backbone out
    params, stats = draw(jax.random.key(0, impl=QUICK_RANDOM))
    if method == "init_head":
        params = {"head": params}
    return {path: np.asarray(x) for path, x in flatten_dict(params, sep="/").items()}, stats


def check_params(
    name: str,
    params: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[tuple[int, ...], str]],
) -> None:
    """Checks the initial weights of the paths of `params`."""
    first = {}
    for path, values in params.items():
        shape, text = expected[path]
        assert (values.shape, values.dtype) == (shape, np.float32), path
        try:
            check(values, text)
        except AssertionError as error:
            raise AssertionError(f"{name}: {path} is not {text}") from error
        if not text.startswith("constant"):
            # No two tensors from one key.
            value = float(values.flat[0]) / max(_numbers(text.split(" | ")[0].split()[1:]).values())
            assert value not in first, f"{name}: {path} and {first[value]} share a draw"
            first[value] = path


def test_the_golden_text_follows_the_originals_rules():
    text = initialisers_text()
    assert text == (GOLDEN / "initialisers.txt").read_text()
    assert list(read_sections(GOLDEN / "initialisers.txt")) == MEMBERS


def _golden(name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    expected = {}
    for line in read_sections(GOLDEN / "initialisers.txt")[name]:
        path, shape, text = line.split("  ")
        expected[path] = tuple(map(int, shape.split("x"))), text
    return expected


# A NOAH model has every parameter of its linear twin but the head, and these have some more.
_LINEAR = ("mobilenetv3_small", "deit_tiny_050_patch16_224", "pvt_tiny_050")
WHOLE = [name for name in MEMBERS if name.startswith("noah_") or name in _LINEAR]


@pytest.mark.parametrize("name", WHOLE)
def test_every_parameter_starts_as_the_originals(name):
    check_model(name, _golden(name))


@pytest.mark.parametrize("name", sorted(set(MEMBERS) - set(WHOLE)))
def test_the_linear_heads_do_where_the_backbone_is_that_of_noah(name):
    expected, twin = _golden(name), _golden(f"noah_{name}")
    backbone = {path: text for path, text in expected.items() if not path.startswith("head/")}
    assert backbone.items() <= twin.items()
    params, _ = _init(name, "init_head")
    assert params.keys() == expected.keys() - backbone.keys()
    check_params(name, params, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(original_models()) - set(WHOLE)))
def test_the_other_models_too(name):
    check_model(name, initialisers(name))


STANDARD = np.random.RandomState(0).standard_normal(LARGE)
FLAT = np.random.RandomState(1).uniform(-1, 1, LARGE)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (0.02 * STANDARD, "normal std=0.02"),
        (0.3 * FLAT, "uniform bound=0.3"),
        (np.full(3, np.float32(1e-4)), "constant 0.0001"),
        (np.stack([0.3 * FLAT, 0 * FLAT + 1], -1), "uniform bound=0.3 | constant 1"),
    ],
)
def test_the_check_accepts(values, text):
    check(values, text)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (0.0176 * STANDARD, "normal std=0.02"),
        (0.02 * STANDARD + 0.004, "normal std=0.02"),
        (0.02 * np.clip(STANDARD, -2.3, 2.3), "normal std=0.02"),
        (0.02 * np.sqrt(3) * FLAT, "normal std=0.02"),
        (STANDARD, f"truncated_normal std=1 bound={2 / TRUNCATED_STD}"),
        (0.3 * FLAT, "uniform bound=0.29"),
        (0.3 * FLAT[:100], "uniform bound=0.5"),
        (0.27 * FLAT, "uniform bound=0.3"),
        (np.full(3, np.float32(1.001e-4)), "constant 0.0001"),
        (np.stack([0 * FLAT + 1, 0.3 * FLAT], -1), "uniform bound=0.3 | constant 1"),
        (np.append(STANDARD, np.nan), "normal std=1"),
    ],
)
def test_the_check_rejects(values, text):
    with pytest.raises(AssertionError):
        check(values, text)


def _torch_tensors(torch):
    """Model, key, shapes and the tensor that PyTorch itself makes for them."""
    nn, init = torch.nn, torch.nn.init
    # Default layers.
    depthwise = nn.Conv2d(512, 512, 3, groups=512, bias=False).weight
    yield "shufflenetv2_050", "stage2.0.branch1.0.weight", {}, depthwise
    linear = nn.Linear(64, 4000)
    shapes = {"head.2.weight": (4000, 64)}
    yield "shufflenetv2_050", "head.2.weight", shapes, linear.weight
    yield "shufflenetv2_050", "head.2.bias", shapes, linear.bias
    patches = nn.Conv2d(3, 4096, 16)
    shapes = {"patch_embed.proj.weight": (4096, 3, 16, 16)}
    yield "deit_tiny_patch16_224", "patch_embed.proj.weight", shapes, patches.weight
    yield "deit_tiny_patch16_224", "patch_embed.proj.bias", shapes, patches.bias
    # torch.nn.init's functions as the original calls them.
    init.kaiming_normal_(depthwise, mode="fan_out", nonlinearity="relu")
    yield "mobilenetv2_100", "features.2.conv.1.0.weight", {}, depthwise
    query = nn.Conv2d(256, 4 * 100, 1, groups=4).weight
    init.kaiming_normal_(query, mode="fan_out")
    for name in ("noah_resnet18", "noah_shufflenetv2_100", "noah_pvt_tiny"):
        yield name, "head.query.weight", {}, query
    weight = init.trunc_normal_(torch.empty(192, 192), std=0.02)
    yield "pvt_tiny", "block1.0.attn.q.weight", {}, weight
    weight = init.xavier_uniform_(torch.empty(384, 196))
    yield "mixer_s16_224", "blocks.0.mlp_tokens.fc1.weight", {}, weight
    # timm's lecun_normal_: cut at two sigma first, then scaled.
    fan_in = query.shape[1]
    cut = init.trunc_normal_(torch.empty(query.shape), a=-2, b=2)
    yield "noah_mixer_s16_224", "head.query.weight", {}, cut / fan_in**0.5 / TRUNCATED_STD


def test_the_rules_are_pytorchs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    for name, key, shapes, tensor in _torch_tensors(torch):
        text = initialiser(name, key, {key: tuple(tensor.shape), **shapes})
        check(tensor.detach().numpy(), text)
