"""Which parameters are trained, and how fast: regular expressions over their paths.

A path is the keys of the parameter joined by "/", such as "layer1/0/conv1/kernel" or
"head/query/bias". An expression is searched for anywhere in it (`re.search`): "^head/" is the
head, "^(?!head/)" all else.
"""

import dataclasses
import difflib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax.errors import InputError

_NEAR = 3


@dataclasses.dataclass(frozen=True)
class Groups:
    """What the configuration says of single parameters, by path.

    Attributes:
      frozen: the parameters that are not trained.
      factors: of the learning rate, where it is not the schedule's.
    """

    frozen: frozenset[str]
    factors: Mapping[str, float]

    def describe(self, params: Any) -> Iterator[str]:
        """Lines on how many parameters are frozen or have a learning rate of their own."""
        sizes = {path: leaf.size for path, leaf in flatten_dict(params, sep="/").items()}
        if self.frozen:
            frozen = sum(sizes[path] for path in self.frozen)
            yield f"{frozen:,} parameters are frozen, {sum(sizes.values()) - frozen:,} are trained"
        count = Counter()
        for path, factor in self.factors.items():
            count[factor] += sizes[path]
        for factor, size in count.items():
            yield f"the learning rate of {size:,} parameters is {factor:g} times the schedule's"


def find_groups(config: Mapping[str, Any], params: Any) -> Groups:
    """The groups of a model's parameters.

    Args:
      config: The `optim` section of the configuration. `freeze` has expressions; `param_groups` has
        pairs of an expression and a factor of the learning rate, the first that matches counts.
      params: nested dicts.

    Raises:
      ValueError: on a bad expression or factor, one that reaches no parameter, or if nothing is
        left to train.
    """
    paths = list(flatten_dict(params, sep="/"))
    frozen: set[str] = set()
    for pattern in config["freeze"]:
        frozen.update(_matching("optim.freeze", pattern, paths))
    trained = [path for path in paths if path not in frozen]
    if not trained:
        raise InputError("optim.freeze leaves no parameter to train; '^(?!head/)' spares the head")
    factors: dict[str, float] = {}
    for pair in config["param_groups"]:
        pattern, factor = _pair(pair)
        matching = _matching("optim.param_groups", pattern, paths)
        reached = [path for path in matching if path not in frozen and path not in factors]
        if not reached:
            raise InputError(
                f"optim.param_groups: all that {pattern!r} matches is frozen or in an earlier group"
            )
        factors.update(dict.fromkeys(reached, factor))
    return Groups(frozenset(frozen), factors)


def trainable(params: Any, frozen: Collection[str]) -> Any:
    """Nested dicts without the frozen parameters."""
    if not frozen:
        return params
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({k: v for k, v in flat.items() if k not in frozen}, sep="/")


def with_frozen(trained: Any, params: Any) -> Any:
    """`params` with what `trained` has in place of their own."""
    return unflatten_dict(flatten_dict(params) | flatten_dict(trained))


def _matching(key: str, pattern: Any, paths: list[str]) -> list[str]:
    if not isinstance(pattern, str):
        raise InputError(f"{key}: expected a regular expression, got {pattern!r}")
    try:
        found = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise InputError(f"{key}: {pattern!r} is no regular expression: {error}") from error
    if not found:
        near = difflib.get_close_matches(pattern.strip("^$"), paths, n=_NEAR, cutoff=0)
        raise InputError(f"{key}: {pattern!r} matches no parameter; near are {', '.join(near)}")
    return found


def _pair(pair: Any) -> tuple[str, float]:
    if isinstance(pair, str) or not hasattr(pair, "__len__") or len(pair) != 2:
        raise InputError(
            f"optim.param_groups: expected pairs of an expression and a factor, such as"
            f" (('^head/', 10.0),), got {pair!r} for one"
        )
    pattern, factor = pair
    number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not number or not 0 < factor < math.inf:
        raise InputError(
            f"optim.param_groups: the factor of {pattern!r} must be above 0, got {factor!r};"
            " optim.freeze stops training"
        )
    return pattern, float(factor)
