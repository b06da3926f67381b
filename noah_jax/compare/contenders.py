"""Finds the contenders of a configuration: every head with every setting, fairly compared."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from noah_jax.compare.sweep import Sweep, combinations
from noah_jax.config_flags import parse_config
from noah_jax.config_sections import model_section
from noah_jax.console import note, warn_once
from noah_jax.errors import UsageError
from noah_jax.models import create_model
from noah_jax.models.create import NOAH_ARGUMENTS

_NOAH_KEYS = tuple(f"model.{name}" for name in NOAH_ARGUMENTS)
# Keys that may differ between the heads, besides the section `head`; all others, except for those
# that are swept, must be equal.
_KEYS_OF_THE_HEAD = frozenset({"model.name", "model.head", "model.head_drop_rate", *_NOAH_KEYS})
_SOME_CLASSES = 10


class Contender(NamedTuple):
    """One head with one setting, for one configuration.

    Attributes:
      config: The configuration, as the user named it.
      head: The name of the head.
      setting: The values of the swept keys, as the configuration has them.
      words: The command line that makes its configuration, `--config FILE:VARIANT` first.
      flat: Its configuration, as a flat dict.
    """

    config: str
    head: str
    setting: dict[str, Any]
    words: tuple[str, ...]
    flat: dict[str, Any]

    def folder(self, seed: int) -> str:
        """Returns the name of the folder for the training with a seed."""
        name = self.config.replace(".py", "").removeprefix("configs/")
        for mark in ":/\\.":
            name = name.replace(mark, "-")
        values = [f"{key}={quote(_text(value), safe=',')}" for key, value in self.setting.items()]
        return "-".join([name.strip("-"), self.head, *values, f"seed{seed}"])


def find_contenders(
    config: str, heads: Sequence[str] | None, sweep: Sweep, overrides: Sequence[str] = ()
) -> list[Contender]:
    """Loads a configuration with each head and each setting.

    Args:
      config: `FILE` or `FILE:VARIANT`.
      heads: Names of heads; `None` takes the head that the configuration has.
      sweep: The keys that vary, with their values.
      overrides: `--config.KEY=VALUE` words for all contenders. Those that a head does not have are
        left out for it.

    Returns:
      The contenders, those of the first head first. A head is there once for every combination of
      the keys that it has.

    Raises:
      UsageError: If there is no such configuration, key or head, if no head has a swept key, or if
        the contenders differ in more than the head and the swept keys.
      InputError: If a value does not fit its key.
    """
    if heads is None:
        heads = [_head_of(_flat(parse_config([f"--config={config}", *overrides])))]
        bases: dict[str, tuple[str, tuple[str, ...]]] = {heads[0]: (config, ())}
    else:
        bases = {head: _base(config, head) for head in heads}
    for key in sweep:
        if not any(applies(key, head) for head in heads):
            raise UsageError(
                f"--sweep: {key} is of the {head_of_key(key)} head alone, and {config} is compared"
                f" with {', '.join(heads)}; give --heads {head_of_key(key)}"
            )
    contenders = []
    for head, (variant, head_words) in bases.items():
        for setting in combinations({k: v for k, v in sweep.items() if applies(k, head)}):
            words = (
                f"--config={variant}",
                *overrides_for(head, overrides),
                *head_words,
                *(f"--config.{key}={value}" for key, value in setting.items()),
            )
            words = (*words, *_shorter_warmup(words))
            parsed = parse_config(words)
            flat = _flat(parsed)
            if _head_of(flat) != head:
                raise UsageError(
                    f"--config {variant} should have the {head} head, but its model is"
                    f" {flat['model.name']} with the {_head_of(flat)} head"
                )
            if flat["model.name"] is not None:
                # What does not fit the model is told before anything is trained. The data know the
                # number of classes.
                create_model(num_classes=_SOME_CLASSES, **model_section(parsed))
            values = {key: flat[key] for key in setting}
            contenders.append(Contender(config, head, values, words, flat))
    _check_fairness(config, contenders, frozenset(sweep))
    return contenders


def applies(key: str, head: str) -> bool:
    """Says whether a key of the configuration has a meaning for a head."""
    return head_of_key(key) in (None, head)


def head_of_key(key: str) -> str | None:
    """Returns the only head that has a key of the configuration; `None` if all have it."""
    section, _, option = key.partition(".")
    if section == "head" and "." in option:
        return option.partition(".")[0]
    return "noah" if section == "head" or key in _NOAH_KEYS else None


def overrides_for(head: str, overrides: Sequence[str]) -> list[str]:
    """Returns the words that set single keys, without those that the head does not have."""
    words = []
    value_follows = False
    for word in overrides:
        if value_follows:
            value_follows = False
            continue
        key, equals, _ = word.removeprefix("--config.").partition("=")
        if applies(key, head):
            words.append(word)
        else:
            value_follows = not equals
    return words


def variant_for(config: str, head: str) -> str:
    """Returns `FILE:VARIANT` of a configuration with the linear head or NOAH.

    Args:
      config: `FILE`, or `FILE:VARIANT` with any head.
      head: "linear" or "noah".
    """
    file, _, variant = config.partition(":")
    backbone = variant.removeprefix("noah_")
    if backbone in ("", "linear", "noah"):
        return f"{file}:{head}"
    return f"{file}:{backbone if head == 'linear' else 'noah_' + backbone}"


def labels(contenders: Sequence[Contender]) -> list[str]:
    """Names each contender by what distinguishes it: its head, the swept keys, or both."""
    keys = {key for contender in contenders for key in contender.setting}
    lasts = [key.rpartition(".")[2] for key in keys]
    short = {
        key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)
    }
    several = len({contender.head for contender in contenders}) > 1 or not keys
    return [
        ", ".join(
            [
                *([contender.head] if several or not contender.setting else []),
                *(f"{short[key]}={_text(value)}" for key, value in contender.setting.items()),
            ]
        )
        for contender in contenders
    ]


def tell_left_out(heads: Sequence[str] | None, sweep: Sweep) -> None:
    """Says in a line which swept keys a head does not have."""
    for head in heads or ():
        missing = [key for key in sweep if not applies(key, head)]
        if missing:
            note(f"the {head} head has no {', no '.join(missing)}: it is trained without")


def _base(config: str, head: str) -> tuple[str, tuple[str, ...]]:
    """Returns `FILE:VARIANT` and the words after it that give a configuration a head."""
    if head in ("linear", "noah"):
        return variant_for(config, head), ()
    return variant_for(config, "linear"), (f"--config.model.head={head}",)


def _shorter_warmup(words: Sequence[str]) -> list[str]:
    """Returns the word that shortens a warm-up if the command line leaves too few epochs for it.

    It keeps its fraction of the run. One that the command line sets, stays.
    """
    own, given = parse_config(words[:1]), parse_config(words)
    warmup = own.optim.warmup_epochs
    if not warmup or not own.epochs or not given.epochs or warmup >= own.epochs:
        return []
    if given.optim.warmup_epochs != warmup or warmup < given.epochs:
        return []
    shorter = f"optim.warmup_epochs={given.epochs * warmup / own.epochs:g}"
    warn_once(
        f"epochs={given.epochs:g} leaves no room for the warm-up of {warmup:g} epochs: {shorter}"
    )
    return [f"--config.{shorter}"]


def _flat(config: ConfigDict) -> dict[str, Any]:
    return flatten_dict(json.loads(config.to_json_best_effort()), sep=".")


def _head_of(flat: Mapping[str, Any]) -> str:
    """Returns the name of a configuration's head."""
    name = flat["model.name"] or ""  # Without a name it is the model of init_from.
    return flat.get("model.head") or ("noah" if name.startswith("noah_") else "linear")


def _check_fairness(config: str, contenders: Sequence[Contender], swept: frozenset[str]) -> None:
    first = contenders[0]
    free = _KEYS_OF_THE_HEAD | swept | ({"optim.warmup_epochs"} if "epochs" in swept else set())
    for number, other in enumerate(contenders):
        differing = [
            key
            for key in sorted(first.flat.keys() | other.flat.keys())
            if first.flat.get(key) != other.flat.get(key)
            and key not in free
            and not key.startswith("head.")
        ]
        if differing:
            raise UsageError(
                f"the heads of {config} differ in more than the head: {', '.join(differing[:4])};"
                " set these keys to the same values with --config.KEY=VALUE"
            )
        if any(other.flat == earlier.flat for earlier in contenders[:number]):
            raise UsageError(
                f"--sweep repeats a value: {config} is the same twice with"
                f" {labels(contenders)[number]}"
            )


def _text(value: Any) -> str:
    """Returns a value as names of folders and tables have it."""
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
