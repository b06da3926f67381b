"""How much arithmetic a model takes, read off its program."""

import math

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from noah_jax.models.base import Model


def multiply_adds(model: Model) -> int:
    """Multiply-adds of the convolutions and matrix products of one evaluated image.

    What papers call FLOPs; norms, activations, softmax and sums do not count. A product that
    the NOAH head forms by weighing and summing is none: it is part of the softmax's work.
    """
    images = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
    program = jax.make_jaxpr(lambda *args: model.apply(*args, train=False)[0])
    return _count(program(*model.abstract(), images).jaxpr)


def _count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            out = math.prod(equation.outvars[0].aval.shape)
            total += out * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            # HWIO: all but the output channels are summed over.
            kernel = equation.invars[1].aval.shape
            layout = equation.params["dimension_numbers"].rhs_spec
            out = math.prod(equation.outvars[0].aval.shape)
            total += out * math.prod(kernel[axis] for axis in layout[1:])
        else:
            # One of several forms by platform (`platform_dependent`): the native one counts.
            total += max(map(_count, jaxprs_in_params(equation.params)), default=0)
    return total
