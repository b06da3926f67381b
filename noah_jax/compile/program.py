"""Compiles the train steps of configurations for machines and prints what each takes."""

import fnmatch
import importlib.util
import json
from collections.abc import Sequence
from typing import Literal

from ml_collections import ConfigDict

from noah_jax.aot.targets import Target, open_targets
from noah_jax.compile import report_text
from noah_jax.compile.analysis import compile_for, smaller_batch
from noah_jax.config_files import config_folder
from noah_jax.console import say, working
from noah_jax.errors import NoahError, UsageError, did_you_mean

Form = Literal["json", "table", "text"]


def compile_and_print(configs: Sequence[ConfigDict], topologies: Sequence[str], form: Form) -> bool:
    """Compiles each configuration for each machine and prints what it takes.

    Args:
      configs: Configurations of training runs.
      topologies: Names of the machines; see `noah_jax.aot.targets.open_targets`.
      form: "json" prints an object a line, "table" a row, "text" all lines of a report.

    Returns:
      Whether every step fits into its machine's memory.

    Raises:
      NoahError: If a configuration, a machine or the compiler does not fit; in a table a step
        that cannot be compiled is a row instead.
    """
    with working("loading the compilers"):
        targets = open_targets(list(topologies))
    if form == "table":
        say(report_text.HEADER)
    return all([_compile(config, target, form) for config in configs for target in targets])


def _compile(config: ConfigDict, target: Target, form: Form) -> bool:
    """Compiles one configuration for one machine, prints its report and returns if it fits."""
    try:
        report = compile_for(config, target)
    except NoahError as error:
        if form != "table":
            raise
        say(report_text.failed_row(config.model.name, target.name, error))
        return False
    smaller = None if report.fits else smaller_batch(config, target, report)
    if form == "json":
        fitting = None if smaller is None else smaller.batch_size
        say(json.dumps(report.to_dict() | {"fitting_batch_size": fitting}))
    elif form == "table":
        say(report_text.row(report, smaller))
    else:
        say(report_text.describe(report, smaller))
    return report.fits


def all_variants(pattern: str) -> list[str]:
    """Returns `FILE:VARIANT` for every variant of the packaged configurations.

    Args:
      pattern: Pattern that the variants fit, such as "noah_*".

    Raises:
      UsageError: If none fits.
    """
    names, every = [], set()
    for path in sorted(config_folder().glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        variants = [p + b for p in ("", "noah_") for b in getattr(module, "BACKBONES", ())]
        every.update(variants)
        names += [f"{path}:{variant}" for variant in fnmatch.filter(variants, pattern)]
    if not names:
        raise UsageError(
            f"no variant of the packaged configurations is called {pattern}"
            f"{did_you_mean(pattern, every)}"
        )
    return names
