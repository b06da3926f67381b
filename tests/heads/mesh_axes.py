"""Checks every head on eight devices against one; run by test_mesh_axes.py by itself.

The argument "two" takes two kinds of axes only, no implementation twice, and of the heads beside
NOAH and the linear one that with the most parts alone. It only traces the implementations of NOAH
that take long to compile, which finds operations that do not fit.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding

from noah_jax.heads.csra import CSRAHead
from noah_jax.heads.linear import LinearHead
from noah_jax.heads.map import MAPHead
from noah_jax.heads.noah import NOAH
from noah_jax.heads.noah.poca import ROWS
from noah_jax.heads.registry import HEADS, make_head
from noah_jax.heads.spec import HeadSpec
from noah_jax.nn.dropout import MicroBatchKey

_BATCH = 128  # the TPU kernels take 16 images a device
_AUTO, _EXPLICIT = AxisType.Auto, AxisType.Explicit
# Name, types of the axes `data`, `fsdp` and `model`, the axes of the batch, and whether the head
# runs inside a `jax.shard_map` over them that checks its types.
AXES = (
    ("Auto", (_AUTO, _AUTO, _AUTO), ("data", "fsdp", "model"), None),
    ("Explicit", (_EXPLICIT, _EXPLICIT, _EXPLICIT), ("data", "fsdp"), None),
    ("Explicit, one axis", (_EXPLICIT, _EXPLICIT, _EXPLICIT), ("data",), None),
    ("mixed", (_EXPLICIT, _AUTO, _EXPLICIT), ("data",), None),
    ("Manual", (_EXPLICIT, _EXPLICIT, _EXPLICIT), ("data", "fsdp", "model"), True),
    ("Manual, unchecked", (_AUTO, _AUTO, _AUTO), ("data", "fsdp", "model"), False),
)


# Options of the heads beside `linear` and `noah`.
OTHERS = {name: {} for name in HEADS if name not in ("linear", "noah")} | {
    "ml_decoder": {"groups": 4, "width": 16, "hidden": 8},
    "class_attention": {"head_width": 4, "layer_scale": 0.1},
}
_TRACED = ("tpu_interpret", "tpu_map_interpret", "gpu_interpret", "cpu")
_TWO = [axes for axes in AXES if axes[0] in ("Explicit", "Manual")]


def make_heads(words):
    """Makes every head, by name, with the `words` that choose an implementation of NOAH."""
    common = dict(in_features=16, num_classes=9, dropout=0.4)
    others = {"linear": LinearHead, "csra": CSRAHead, "map": MAPHead}
    heads = {name: head(**common, rngs=nnx.Rngs(params=0)) for name, head in others.items()}
    compiled = {name for name, row in ROWS.items() if row.platform in ("tpu", "cuda")}
    for name in (*words, *(name for name in ROWS if name not in compiled)):
        heads[name] = NOAH(
            **common | (dict(dropout=0.0, spatial_major=True) if "map" in name else {}),
            head_num=2,
            implementation=name,
            rngs=nnx.Rngs(params=0),
        )
    others = OTHERS if words else {"ml_decoder": OTHERS["ml_decoder"]}
    for name, options in others.items():
        spec = HeadSpec(name, 9, 2, 0.5, drop_rate=0.4, options=HEADS[name].options | options)
        heads[name] = make_head(spec, 16, init={}, rngs=nnx.Rngs(params=0))
    return heads


def make_step(graphdef, axes, sum_gradients=False):
    """Makes the function of the whole batch, or of the shard of a device along `axes`.

    It gives logits while training and in evaluation, and gradients of features and weights.
    """

    def step(weights, features):
        numbers = jnp.arange(len(features), dtype=jnp.int32)
        if axes:  # a shard's images keep their numbers in the whole batch
            numbers += jax.lax.axis_index(axes) * len(features)

        def loss(weights, features):
            key = MicroBatchKey(jax.random.key(5), numbers)
            logits = nnx.merge(graphdef, weights)(features, train=True, key=key)
            return (jnp.sin(logits) ** 2).sum(), logits

        grads, logits = jax.grad(loss, argnums=(0, 1), has_aux=True)(weights, features)
        d_weights = grads[0]
        if sum_gradients:  # with types that are checked, JAX sums those of shared weights
            d_weights = jax.lax.psum(d_weights, axes)
        return logits, nnx.merge(graphdef, weights)(features, train=False), grads[1], d_weights

    return step


def run(name, graphdef, weights, features, types, axes, checked, *, trace=False):
    """Runs a step on eight devices, or traces it and returns None."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "model"), types)
    whole, shards = jax.P(), jax.P(axes)
    with jax.set_mesh(mesh):
        placed = jax.device_put(features, NamedSharding(mesh, shards))
        weights = jax.device_put(weights, NamedSharding(mesh, whole))
        step = make_step(graphdef, () if checked is None else axes, checked is False)
        if checked is not None:
            outs = shards, shards, shards, whole
            step = jax.shard_map(step, in_specs=(whole, shards), out_specs=outs, check_vma=checked)
        if trace:
            jax.eval_shape(step, weights, placed)
            return None
        outputs = _quick_jit(step)(weights, placed)
    if _AUTO not in types:
        for x in outputs[:3]:
            assert x.sharding.is_equivalent_to(NamedSharding(mesh, shards), x.ndim), (name, x)
        for x in jax.tree.leaves(outputs[3]):
            assert x.sharding.is_fully_replicated, (name, x.sharding)
    return outputs


def _quick_jit(function):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def main(few):
    random = np.random.RandomState(0)
    features = random.standard_normal((_BATCH, 3, 5, 16)).astype(np.float32)
    exact = {}
    for name, head in make_heads(() if few else ("auto", "xla", "pallas")).items():
        graphdef, weights = nnx.split(head)
        definition = head.dropout if isinstance(head, NOAH) else name
        trace = few and name in _TRACED
        if definition not in exact and not trace:
            head = nnx.merge(graphdef, weights)
            if isinstance(head, NOAH):
                head.implementation = "reference"
            exact[definition] = _quick_jit(make_step(nnx.split(head)[0], ()))(weights, features)
        for axes_name, *axes in _TWO if few else AXES:
            outputs = run(name, graphdef, weights, features, *axes, trace=trace)
            if trace:
                print(name, axes_name, "can be traced", flush=True)
                continue
            pairs = zip(*map(jax.tree.leaves, (outputs, exact[definition])), strict=True)
            for actual, expected in pairs:
                error = np.linalg.norm(actual - np.asarray(expected))
                assert error <= 1e-5 * np.linalg.norm(expected), (name, axes_name, error)
            print(name, axes_name, "agrees", flush=True)


if __name__ == "__main__":
    main(few=sys.argv[1:] == ["two"])
