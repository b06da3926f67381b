"""Finds which parameters are trained, and how fast, by regular expressions over their paths.

A path is the keys of the parameter joined by "/", such as "layer1/0/conv1/kernel" or
"head/query/bias". An expression may match anywhere in it (`re.search`): "^head/" is the head,
"^(?!head/)" is everything else.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from noah_jax.errors import InputError, near_matches
from noah_jax.train.layer_decay import layer_scales

_MAX_SUGGESTED = 3


@dataclasses.dataclass(frozen=True)
class ParamGroups:
    """What the configuration says of single parameters, by path.

    Attributes:
      frozen: The parameters that are not trained.
      factors: Factors of the learning rate, for parameters that do not have the schedule's.
      scales: Factors of layer-wise decay, which multiply those; empty without it.
    """

    frozen: frozenset[str]
    factors: Mapping[str, float]
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def rates(self) -> dict[str, float]:
        """The learning rate over the schedule's, for parameters that do not have the schedule's."""
        paths = dict.fromkeys((*self.scales, *self.factors))
        return {path: self.scales.get(path, 1.0) * self.factors.get(path, 1.0) for path in paths}

    def describe(self, params: Any) -> Iterator[str]:
        """Says how many parameters are frozen or have a learning rate of their own."""
        sizes = {path: leaf.size for path, leaf in flatten_dict(params, sep="/").items()}
        if self.frozen:
            frozen = sum(sizes[path] for path in self.frozen)
            yield f"{frozen:,} parameters are frozen, {sum(sizes.values()) - frozen:,} are trained"
        count: Counter[float] = Counter()
        for path, factor in self.factors.items():
            count[factor] += sizes[path]
        for factor, size in count.items():
            yield f"the learning rate of {size:,} parameters is {factor:g} times the schedule's"
        if trained := [scale for path, scale in self.scales.items() if path not in self.frozen]:
            also = ", times that" if self.factors else ""
            yield (
                f"layer by layer, {len(set(trained))} in all, the learning rate rises from"
                f" {min(trained):.3g} to {max(trained):.3g} times the schedule's{also}"
            )


def find_param_groups(
    section: Mapping[str, Any], params: Any, *, layers: Sequence[str] = ()
) -> ParamGroups:
    """Finds the parameters that the expressions match.

    Args:
      section: The section `optim`. `freeze` has expressions; `param_groups` has pairs of an
        expression and a factor of the learning rate, and the first pair that matches counts.
        `layer_decay` is the factor from one layer to the one before it, or `None`.
      params: The model's parameters, as nested dicts.

    Raises:
      InputError: If an expression or factor is wrong, an expression reaches no parameter, or
        nothing is left to train.
    """
    paths = list(flatten_dict(params, sep="/"))
    frozen: set[str] = set()
    for pattern in section["freeze"]:
        frozen.update(_matching("optim.freeze", pattern, paths))
    if len(frozen) == len(paths):
        raise InputError("optim.freeze leaves no parameter to train; '^(?!head/)' spares the head")
    factors: dict[str, float] = {}
    for pair in section["param_groups"]:
        pattern, factor = _pair(pair)
        matching = _matching("optim.param_groups", pattern, paths)
        reached = [path for path in matching if path not in frozen and path not in factors]
        if not reached:
            raise InputError(
                f"optim.param_groups: all that {pattern!r} matches is frozen or in an earlier pair"
            )
        factors.update(dict.fromkeys(reached, factor))
    decay = section["layer_decay"]
    scales = {} if decay is None else layer_scales(decay, paths, layers)
    return ParamGroups(frozenset(frozen), factors, scales)


def trainable(params: Any, frozen: Collection[str]) -> Any:
    """Returns nested dicts without the frozen parameters."""
    if not frozen:
        return params
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({k: v for k, v in flat.items() if k not in frozen}, sep="/")


def with_frozen(trained: Any, params: Any) -> Any:
    """Returns `params` with the arrays of `trained` in place of its own."""
    return unflatten_dict(flatten_dict(params) | flatten_dict(trained))


def _matching(key: str, pattern: Any, paths: list[str]) -> list[str]:
    if not isinstance(pattern, str):
        raise InputError(f"{key}: expected a regular expression, got {pattern!r}")
    try:
        matching = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise InputError(f"{key}: {pattern!r} is no regular expression: {error}") from error
    if not matching:
        close = near_matches(pattern.strip("^$"), paths, _MAX_SUGGESTED, cutoff=0)
        raise InputError(f"{key}: {pattern!r} matches no parameter; near are {', '.join(close)}")
    return matching


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
