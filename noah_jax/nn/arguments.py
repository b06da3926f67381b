"""Checks the kinds of arguments, so that a text or a truth value is not taken for a number."""

import numbers
import operator
from typing import Any

import numpy as np

from noah_jax.errors import InputError


def check_count(key: str, value: Any, *, what: str = "") -> int:
    """Returns a whole number of at least 1 as an int; NumPy's integers are whole numbers too.

    Args:
      key: Name of the argument, for the message.
      value: The value.
      what: What the number is for, for the message.

    Raises:
      InputError: If it is something else, such as "10", 10.0 or True.
    """
    number = None if isinstance(value, bool | np.bool_) else _index(value)
    if number is None or number < 1:
        kind = "" if number is not None else "a whole number of "
        raise InputError(f"{key} must be {kind}at least 1{what}, got {value!r}")
    return number


def check_number(key: str, value: Any) -> float:
    """Returns a number as a float.

    Raises:
      InputError: If it is something else, such as "0.5" or True.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise InputError(f"{key} must be a number, got {value!r}")
    return float(value)


def check_rate(key: str, value: Any) -> float:
    """Returns a rate of dropping as a float.

    Raises:
      InputError: If it is no number, or does not lie in [0, 1).
    """
    rate = check_number(key, value)
    if not 0 <= rate < 1:
        raise InputError(f"{key} must lie in [0, 1), got {value}")
    return rate


def check_flag(key: str, value: Any) -> bool:
    """Returns a truth value as a bool.

    Raises:
      InputError: If it is something else, such as "no" or 1.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{key} must be True or False, got {value!r}")
    return bool(value)


def _index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None
