"""Parses `--config FILE[:VARIANT] --config.KEY=VALUE ...` into a configuration."""

import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from noah_jax.config import flat_config
from noah_jax.config_files import with_found_config
from noah_jax.config_names import explain_unknown_key, refuse_old_keys
from noah_jax.config_values import RULES, Switch, check_values
from noah_jax.errors import UsageError

_SINGLE_KEY = re.compile(r"--?(?:no)?config\.([^=\[]+)")


def parse_config(words: Sequence[str]) -> ConfigDict:
    """Parses the words of a command line that make a configuration.

    Args:
      words: `--config FILE[:VARIANT]`, followed by any number of `--config.KEY=VALUE`.

    Raises:
      UsageError: If the file is missing, a key is unknown, or a value has another type.
      InputError: If a value does not fit its key.
    """
    words, unset = _without_none(with_found_config(words))
    try:
        config = _parse(words)
        if config is None:
            raise UsageError("--config FILE is needed, such as --config configs/quickstart.py")
        _ = config.is_locked  # A file that failed to load raises its error here.
        for key in unset:
            config.update_from_flattened_dict({key: None})
        refuse_old_keys(config)
    except OSError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(f"the configuration file cannot be read: {reason}") from error
    except (flags.Error, AttributeError, ValueError, TypeError, KeyError) as error:
        # ml_collections reports a key that does not exist in several ways, so look for one here.
        raise UsageError(_find_unknown_key(words) or _last_line(error)) from error
    check_values(config)
    return config


def _without_none(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.KEY=None` out of a command line, because ml_collections cannot parse it.

    Returns:
      The other words, and the keys whose last value is None.
    """
    last: dict[str, list[str]] = {}
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or key not in RULES:
            others.append(word)
            continue
        # A switch may stand alone; any other key takes the next word if there is no `=`.
        if equals or isinstance(RULES[key], Switch):
            given = [word]
        else:
            value = next(rest, "")
            given = [word, value]
        last[key] = [] if value == "None" else given
    kept = [word for given in last.values() for word in given]
    return [*others, *kept], [key for key, given in last.items() if not given]


def _parse(words: Sequence[str]) -> ConfigDict | None:
    argv = ["", *words]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    rest = values(argv)[1:]
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags are --name=value")
    return holder.value


def _find_unknown_key(words: Sequence[str]) -> str | None:
    """Explains the first `--config.KEY` that the configuration file does not have, if any."""
    keys = [match[1] for word in words if (match := _SINGLE_KEY.match(word))]
    file_words = [word for word in words if word.startswith("--config=")]
    if "--config" in words:
        position = list(words).index("--config")
        file_words = list(words[position : position + 2])
    try:
        known = flat_config(_parse(file_words) or {})
    except Exception:  # A configuration file may raise anything; then that is to be reported.
        return None
    for key in keys:
        if key not in known and not any(name.startswith(f"{key}.") for name in known):
            return explain_unknown_key(key, known)
    return None


def _last_line(error: Exception) -> str:
    """The reason in one line: the last line of a configuration file's traceback says why."""
    text = str(error)
    reason = text.splitlines()[-1] if "Traceback" in text else text
    # The errors of this package speak for themselves; the name of another error helps.
    return re.sub(r"^noah_jax\.errors\.\w+: ", "", reason)
