"""Converts weights by a family's table of rows, from PyTorch and back."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax.errors import ConversionError
from noah_jax.models.conversion import Row

_MAX_LISTED = 5

_FIELD = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class _Transform:
    """How an array changes between PyTorch's layout and the one here.

    Attributes:
      to_jax: Takes PyTorch's array and the shape here, and returns an array of that shape.
      to_torch: The inverse; takes the array alone.
    """

    to_jax: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _poca_to_jax(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    head_num, _, num_classes = shape
    return x.reshape(head_num, num_classes, -1).transpose(0, 2, 1)


def _poca_to_torch(x: np.ndarray) -> np.ndarray:
    head_num, in_features, num_classes = x.shape
    return x.transpose(0, 2, 1).reshape(head_num * num_classes, in_features, 1, 1)


_TRANSFORMS = {
    "same": _Transform(lambda x, _: x, lambda x: x),
    # OIHW <-> HWIO
    "conv": _Transform(lambda x, _: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # OI <-> IO, of one kernel or of several with other axes in front
    "linear": _Transform(lambda x, _: x.swapaxes(-1, -2), lambda x: x.swapaxes(-1, -2)),
    # [N*K, D, 1, 1] <-> [N, D, K]
    "poca_kernel": _Transform(_poca_to_jax, _poca_to_torch),
    # [N*K] <-> [N, K]
    "poca_bias": _Transform(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1)),
}


def to_jax(
    state_dict: Mapping[str, np.ndarray], table: Iterable[Row], abstract: Mapping[str, Any]
) -> dict[str, Any]:
    """Converts a PyTorch state dict to a tree of arrays.

    Args:
      state_dict: Arrays by PyTorch's keys, without prefixes such as `module.`.
      table: The family's rows.
      abstract: Nested dicts of anything with `.shape`; the result has the same keys and shapes.

    Returns:
      Nested dicts of float32 arrays. A float32 array of the state dict is not copied, so the
      arrays of a mapped file stay in the file.

    Raises:
      ConversionError: If a key is missing, extra, misshapen or not floating-point; the message
        counts such keys and lists the first of them.
    """
    rows = list(table)
    remaining = dict(state_dict)
    for key in state_dict:
        if any(row.path is None and match(row.torch, key) is not None for row in rows):
            del remaining[key]
    out: dict[str, Any] = {}
    problems = []
    for path, leaf in flatten_dict(abstract, sep="/").items():
        key, row = _torch_key(path, rows)
        if key not in remaining:
            problems.append(f"missing key {key}")
            continue
        array = np.asarray(remaining.pop(key))
        expected = _torch_shape(leaf.shape, row)
        if array.shape != expected:
            problems.append(f"{key} has shape {array.shape}, the model needs {expected}")
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"{key} is {array.dtype}, expected floating-point numbers")
            continue
        converted = _TRANSFORMS[row.transform].to_jax(array, leaf.shape)
        with np.errstate(over="ignore"):  # what overflows is refused as not finite
            out[path] = np.asarray(converted, np.float32)
    problems += [f"extra key {key}" for key in remaining]
    if problems:
        more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise ConversionError(
            f"the state dict does not fit the model, {len(problems)} problem(s): "
            + "; ".join(problems[:_MAX_LISTED])
            + more
        )
    return unflatten_dict(out, sep="/")


def expected_shapes(
    abstract: Mapping[str, Any], table: Iterable[Row]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes, by PyTorch's keys, of the state dict that fits a tree.

    The arguments are those of `to_jax`.
    """
    rows = list(table)
    shapes = {}
    for path, leaf in flatten_dict(abstract, sep="/").items():
        key, row = _torch_key(path, rows)
        shapes[key] = _torch_shape(leaf.shape, row)
    return shapes


def _torch_shape(shape: tuple[int, ...], row: Row) -> tuple[int, ...]:
    # A broadcast zero has the leaf's shape and takes no memory.
    return _TRANSFORMS[row.transform].to_torch(np.broadcast_to(np.float32(0), shape)).shape


def to_torch(tree: Mapping[str, Any], table: Iterable[Row]) -> dict[str, np.ndarray]:
    """Converts a tree to a PyTorch state dict of contiguous arrays; the inverse of `to_jax`."""
    rows = list(table)
    out = {}
    for path, leaf in flatten_dict(tree, sep="/").items():
        key, row = _torch_key(path, rows)
        out[key] = np.ascontiguousarray(_TRANSFORMS[row.transform].to_torch(np.asarray(leaf)))
    return out


def match(pattern: str, text: str) -> dict[str, str] | None:
    """Returns the fields of a pattern such as `layer{s}.conv{c}.weight` in a text.

    Returns `None` if the text does not match the pattern.
    """
    found = _regex(pattern).match(text)
    return None if found is None else found.groupdict()


@functools.cache
def _regex(pattern: str) -> re.Pattern:
    parts = _FIELD.split(pattern)
    text = "".join(
        f"(?P<{part}>[^./]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    return re.compile(text + r"\Z")


def _torch_key(path: str, rows: list[Row]) -> tuple[str, Row]:
    for row in rows:
        if row.path is not None and (fields := match(row.path, path)) is not None:
            return row.torch.format(**fields), row
    raise ConversionError(f"no row of the conversion table covers {path!r}")
