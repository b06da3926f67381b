"""Applies a family's conversion table, a list of rows, in both directions."""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax.errors import ConversionError
from noah_jax.models.conversion import Row

_FIELD = re.compile(r"\{(\w+)\}")


def _conv_in(x, _):
    return x.transpose(2, 3, 1, 0)


def _conv_out(x):
    return x.transpose(3, 2, 0, 1)


def _linear_in(x, _):
    return x.transpose(1, 0)


def _poca_in(x, shape):
    head_num, _, num_classes = shape
    return x.reshape(head_num, num_classes, -1).transpose(0, 2, 1)


def _poca_out(x):
    head_num, in_features, num_classes = x.shape
    return x.transpose(0, 2, 1).reshape(head_num * num_classes, in_features, 1, 1)


# name -> (PyTorch to ours, given our shape; ours to PyTorch)
TRANSFORMS = {
    "same": (lambda x, _: x, lambda x: x),
    "conv": (_conv_in, _conv_out),  # OIHW <-> HWIO
    "linear": (_linear_in, lambda x: x.transpose(1, 0)),  # OI <-> IO
    "poca_kernel": (_poca_in, _poca_out),  # [N*K, D, 1, 1] <-> [N, D, K]
    "poca_bias": (lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1)),
}


def to_jax(
    state_dict: Mapping[str, np.ndarray], table: Iterable[Row], abstract: Mapping[str, Any]
) -> dict[str, Any]:
    """A PyTorch state dict as our tree.

    Args:
      state_dict: arrays by PyTorch key, without prefixes such as `module.`.
      table: the family's rows.
      abstract: nested dicts of anything with `.shape`: the tree that must come out.

    Returns:
      Nested dicts of float32 arrays, exactly the keys of `abstract`; views of the state dict's
      arrays where these are float32, so that a file's stay in the file.

    Raises:
      ConversionError: lists every missing, extra and misshapen key at once.
    """
    rows = list(table)
    remaining = dict(state_dict)
    for key in state_dict:
        if any(row.ours is None and match(row.torch, key) is not None for row in rows):
            del remaining[key]
    out: dict[str, Any] = {}
    problems = []
    for path, leaf in flatten_dict(abstract, sep="/").items():
        key, row = _torch_key(path, rows)
        if key not in remaining:
            problems.append(f"missing key {key}")
            continue
        array = np.asarray(remaining.pop(key))
        into, _ = TRANSFORMS[row.transform]
        expected = _torch_shape(leaf.shape, row)
        if array.shape != expected:
            problems.append(f"{key} has shape {array.shape}, the model needs {expected}")
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating):
            problems.append(f"{key} is {array.dtype}, floating-point numbers expected")
            continue
        out[path] = np.asarray(into(array, leaf.shape), np.float32)
    problems += [f"extra key {key}" for key in remaining]
    if problems:
        raise ConversionError(
            f"the state dict does not fit the model, {len(problems)} problem(s): "
            + "; ".join(problems)
        )
    return unflatten_dict(out, sep="/")


def expected_shapes(
    abstract: Mapping[str, Any], table: Iterable[Row]
) -> dict[str, tuple[int, ...]]:
    """The shapes by PyTorch key of the state dict that a tree, as for `to_jax`, comes from."""
    rows = list(table)
    found = (
        (leaf, *_torch_key(path, rows)) for path, leaf in flatten_dict(abstract, sep="/").items()
    )
    return {key: _torch_shape(leaf.shape, row) for leaf, key, row in found}


def _torch_shape(shape: tuple[int, ...], row: Row) -> tuple[int, ...]:
    # A broadcast zero has the leaf's shape and takes no memory.
    return TRANSFORMS[row.transform][1](np.broadcast_to(np.float32(0), shape)).shape


def to_torch(tree: Mapping[str, Any], table: Iterable[Row]) -> dict[str, np.ndarray]:
    """Our tree as a PyTorch state dict of contiguous arrays; the inverse of `to_jax`."""
    rows = list(table)
    out = {}
    for path, leaf in flatten_dict(tree, sep="/").items():
        key, row = _torch_key(path, rows)
        out[key] = np.ascontiguousarray(TRANSFORMS[row.transform][1](np.asarray(leaf)))
    return out


def match(pattern: str, text: str) -> dict[str, str] | None:
    """The fields of a pattern such as `layer{s}.conv{c}.weight` in a text that it matches."""
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
        if row.ours is not None and (fields := match(row.ours, path)) is not None:
            return row.torch.format(**fields), row
    raise ConversionError(f"no row of the conversion table covers {path!r}")
