"""Small members of the DeiT, PVT and MLP families, and what their tests share."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxprs_in_params

from noah_jax.heads.spec import HeadSpec
from noah_jax.models.backbone import Backbone, BackboneSettings
from noah_jax.models.base import Model
from noah_jax.models.deit.modeling import DeiT
from noah_jax.models.family import Architecture
from noah_jax.models.mlp import modeling as mlp
from noah_jax.models.pvt.modeling import PVT

_mlp = functools.partial(
    mlp.MlpMixer, width=32, depth=2, patch_size=16, norm=mlp.layer_norm, channel_ratio=4
)
_mixer = functools.partial(mlp.MixerBlock, mlp=mlp.mlp_layer)
_gmixer = functools.partial(mlp.MixerBlock, mlp=mlp.GluMlp)
_res = functools.partial(mlp.ResBlock, layer_scale=0.1)
BUILDS = {
    "deit": functools.partial(DeiT, width=48, num_heads=3, depth=2, patch_size=16, mlp_ratio=4),
    "pvt": functools.partial(
        PVT,
        widths=(8, 16, 24, 32),
        num_heads=(1, 2, 3, 4),
        depths=(1, 1, 1, 1),
        mlp_ratios=(8, 8, 4, 4),
        reductions=(8, 4, 2, 1),
    ),
    "mixer": functools.partial(_mlp, block=_mixer, token_ratio=1 / 2),
    "gmixer": functools.partial(_mlp, block=_gmixer, token_ratio=1),
    "resmlp": functools.partial(_mlp, block=_res, norm=mlp.Affine),
    "gmlp": functools.partial(_mlp, block=mlp.SpatialGatingBlock, channel_ratio=6),
}


# XLA's optimisations take most of a small test's time, above all those of random numbers.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def small_build(
    kind: str,
    head: Any = "noah",
    image_size: tuple[int, int] = (64, 64),
    num_classes: int = 10,
    head_drop_rate: float = 0.0,
    dtype: Any = jnp.float32,
    remat: bool = False,
    **arguments: Any,
) -> Callable[[nnx.Rngs], Backbone]:
    """Makes a module of one of `BUILDS`, called with its `nnx.Rngs`.

    It is two to four blocks deep; `arguments` override the build's.
    """
    spec = HeadSpec(
        kind=head,
        num_classes=num_classes,
        head_num=4,
        key_ratio=1 / 2,
        drop_rate=head_drop_rate,
        dtype=dtype,
    )
    settings = BackboneSettings(image_size=image_size, remat=remat, dtype=dtype)
    return lambda rngs: BUILDS[kind](spec, settings, rngs=rngs, **arguments)


@functools.cache
def small_model(
    kind: str,
    head: Any = "noah",
    image_size: tuple[int, int] = (64, 64),
    num_classes: int = 10,
    **arguments: Any,
) -> Model:
    """A model of `small_build`."""
    return Model(
        small_build(kind, head, image_size, num_classes, **arguments),
        name=kind,
        arguments=arguments,
        num_classes=num_classes,
        image_size=image_size,
        architecture=Architecture(BUILDS[kind], head_num=4, key_ratio=1 / 2),
    )


def random_images(height: int = 64, width: int = 64) -> jax.Array:
    shape = (2, height, width, 3)
    return jnp.asarray(np.random.RandomState(7).standard_normal(shape), jnp.float32)


def random_params(model: Model) -> dict[str, Any]:
    """Parameters that let every layer be felt, without compiling the initialisers."""
    random = np.random.RandomState(0)

    def draw(x):
        noise = random.standard_normal(x.shape).astype(np.float32)
        return noise / np.sqrt(np.prod(x.shape[:-1])) if len(x.shape) > 1 else 0.5 + 0.1 * noise

    return jax.tree.map(draw, model.abstract()[0])


def equations(jaxpr) -> Iterator[Any]:
    """Every equation of a jaxpr, those of its inner jaxprs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def check_published(model: Model, num_params: int, image_size: tuple[int, int]) -> None:
    """A published transformer has these parameters, 1000 classes and no statistics."""
    assert model.num_params == num_params
    assert (model.num_classes, model.image_size) == (1000, image_size)
    assert model.abstract()[1] == {}
