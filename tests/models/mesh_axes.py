"""Checks small models on eight devices; run by test_mesh_axes.py in a process of its own.

Logits, statistics and gradients under Auto, Explicit and Manual axes are compared with one
device's. The first argument says how much is checked: "all" axes, "two" kinds of axes, or those two
by tracing alone ("trace"), which finds operations that do not fit. Names of families follow.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from noah_jax.models import create_model
from noah_jax.nn.dropout import MicroBatchKey
from noah_jax.pytorch.reference import example_weights

_BATCH = 16
_OUTPUTS = "logits", "logits in evaluation", "gradients", "statistics"
_VIT = dict(image_size=32, patch_size=16, depth=1, width=16)
MODELS = {
    "resnet": ("noah_resnet18", dict(image_size=16, width=4, depths=(1, 1, 1, 1), stem="small")),
    "mobilenetv2": ("noah_mobilenetv2_035", dict(image_size=32, width_mult=0.1)),
    "mobilenetv3": ("mobilenetv3_small", dict(image_size=32, width_mult=0.1)),
    "shufflenetv2": ("shufflenetv2_050", dict(image_size=32, depths=(1, 1, 1))),
    "deit": ("noah_deit_tiny_patch16_224", dict(_VIT, num_heads=2, remat=True)),
    "dinov2": (
        "noah_vit_small_patch14_reg4_dinov2",
        dict(image_size=32, patch_size=16, depth=1, width=16, num_heads=2),
    ),
    "pvt": (
        "noah_pvt_tiny",
        dict(image_size=32, depths=(1, 1, 1, 1), widths=(8,) * 4, num_heads=(1,) * 4),
    ),
    "mlp": ("mixer_s16_224", _VIT),
}


class Axes(NamedTuple):
    """A mesh, and how the step runs on it.

    Attributes:
      shape: Sizes of the axes `data`, `fsdp` and `model`.
      types: Their types.
      batch: The axes over which the batch is sharded.
      manual: Whether the step runs inside a `jax.shard_map` over these axes.
    """

    shape: tuple[int, ...]
    types: str
    batch: tuple[str, ...]
    manual: bool = False


AXES = {
    "auto": Axes((4, 2, 1), "AAA", ("data", "fsdp")),
    "explicit": Axes((8, 1, 1), "EEE", ("data",)),
    "explicit, two axes of three": Axes((2, 2, 2), "EEE", ("data", "fsdp")),
    "mixed": Axes((2, 2, 2), "EAA", ("data",)),
    "manual": Axes((4, 2, 1), "AAA", ("data", "fsdp"), manual=True),
    "manual inside explicit": Axes((4, 1, 2), "EEE", ("data",), manual=True),
}


_TWO = ("explicit, two axes of three", "manual")


def make_step(model, batch_axes):
    """Makes the function of one device's shard, or of the whole batch without `batch_axes`."""

    def step(params, stats, images, key):
        numbers = jnp.arange(len(images), dtype=jnp.int32)
        if batch_axes:  # a shard's images keep their numbers in the whole batch
            numbers += jax.lax.axis_index(batch_axes) * len(images)

        def loss(params):
            masks = MicroBatchKey(key, numbers)
            logits, new = model.apply(params, stats, images, train=True, key=masks)
            return (jnp.sin(logits) ** 2).sum(), (logits, new)

        grads, (logits, new) = jax.grad(loss, has_aux=True)(params)
        if batch_axes:
            new = jax.lax.pmean(new, batch_axes)
        return logits, model.apply(params, stats, images, train=False)[0], grads, new

    return step


def quick_jit(function):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def check(family, names, trace):
    name, arguments = MODELS[family]
    rates = dict(head_drop_rate=0.3)
    if family in ("deit", "pvt", "mlp"):
        rates |= dict(drop_rate=0.1, drop_path_rate=0.2)
    else:
        arguments = dict(arguments, batch_norm_group=2)
    model = create_model(name, num_classes=5, **rates, **arguments)
    params, stats = example_weights(model)
    random = np.random.RandomState(0)
    images = random.standard_normal((_BATCH, *model.image_size, 3)).astype(np.float32)
    arrays = params, stats, images, jax.random.key(1)
    exact = None if trace else jax.device_get(quick_jit(make_step(model, ()))(*arrays))
    for axes_name in names:
        axes = AXES[axes_name]
        types = tuple(AxisType.Auto if c == "A" else AxisType.Explicit for c in axes.types)
        mesh = jax.make_mesh(axes.shape, ("data", "fsdp", "model"), types)
        whole, shards = jax.P(), jax.P(axes.batch)
        step = make_step(model, axes.batch if axes.manual else ())
        with jax.set_mesh(mesh):
            if axes.manual:
                specs = (whole, whole, shards, whole), (shards, shards, whole, whole)
                step = jax.shard_map(step, in_specs=specs[0], out_specs=specs[1])
            placed = [jax.device_put(x, NamedSharding(mesh, whole)) for x in arrays]
            placed[2] = jax.device_put(images, NamedSharding(mesh, shards))
            if trace:
                jax.eval_shape(step, *placed)
                continue
            logits, *_, new = outputs = quick_jit(step)(*placed)
        for what, actual, expected in zip(_OUTPUTS, outputs, exact, strict=True):
            pairs = list(zip(*map(jax.tree.leaves, (actual, expected)), strict=True))
            error = sum(((np.asarray(x) - y) ** 2).sum() for x, y in pairs)
            size = sum((y**2).sum() for _, y in pairs)
            assert error <= 1e-8 * size, (family, axes_name, what, error / size)
        if axes_name != "auto":
            assert logits.sharding.is_equivalent_to(placed[2].sharding, 2), logits.sharding
            for leaf in jax.tree.leaves((outputs[2], new)):
                assert leaf.sharding.is_fully_replicated, leaf.sharding
        print(family, axes_name, "agrees", flush=True)


if __name__ == "__main__":
    extent, *families = sys.argv[1:]
    for family in families:
        check(family, tuple(AXES) if extent == "all" else _TWO, trace=extent == "trace")
