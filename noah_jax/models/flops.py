"""Counts the arithmetic of a model from its program."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from noah_jax.models.base import Model


def multiply_adds(model: Model) -> int:
    """Counts the multiply-adds of convolutions and matrix products for one evaluated image.

    Papers call this number FLOPs. Norms, activations, softmax and sums do not count, nor does
    the weighted sum of the NOAH head, which belongs to its softmax.
    """
    images = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
    return count_multiply_adds(
        lambda *args: model.apply(*args, train=False)[0], *model.abstract(), images
    )


def count_multiply_adds(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the multiply-adds of a function's convolutions and matrix products.

    Args:
      function: The function, which is only traced.
      *arguments: Its arguments; `jax.ShapeDtypeStruct`s are enough.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = _shape(equation.invars[0])
            out = math.prod(_shape(equation.outvars[0]))
            total += out * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            # HWIO: all but the output channels are summed over.
            kernel = _shape(equation.invars[1])
            layout = equation.params["dimension_numbers"].rhs_spec
            out = math.prod(_shape(equation.outvars[0]))
            total += out * math.prod(kernel[axis] for axis in layout[1:])
        else:
            # `platform_dependent` chooses from several forms; the native one has the most products.
            total += max(map(_count, jaxprs_in_params(equation.params)), default=0)
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
