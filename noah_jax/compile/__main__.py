"""Compiles the real train step for a machine that is not here: does it fit, what does it cost?

    python -m noah_jax.compile --config FILE[:VARIANT] --topology v5e:16x16 [--config.KEY=VALUE]
    python -m noah_jax.compile --all [--models 'noah_*'] --topology v5e:4x4,h100:8

--topology  machines, with commas between them: v4:2x2x4, v5p:2x2x4, v5e:16x16, v6e:16x16 (the
            chips along each axis; needs `pip install libtpu`), h100:8 (needs `pip install
            'jax[cuda13]'`) or cpu:8
--json      one JSON object a line, for each configuration and machine; sizes in bytes
--all       a table of all variants of the files in configs/, or of those that --models names

It needs no accelerator, and of the data only the classes and their number; ImageNet's are known.
Everything is of one device. The exit code is 0 if everything fits, 1 if something does not. For a
batch that does not, the program looks for a smaller one that does. Large models take minutes.
"""

from noah_jax.cli import Parser, show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import fnmatch
import importlib.util
import json
import os
import sys

import jax
from ml_collections import ConfigDict

from noah_jax.compile import text
from noah_jax.compile.analysis import compile_for, smaller_batch
from noah_jax.compile.targets import Target, open_targets
from noah_jax.config import parse_command_line
from noah_jax.config_files import config_folder
from noah_jax.console import fail, say
from noah_jax.errors import UsageError


def main(argv: list[str]) -> int:
    """Compiles what the command line says; returns the exit code."""
    parser = Parser("python -m noah_jax.compile", add_help=False)
    parser.add_argument("--topology")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--models", default="*")
    try:
        given, rest = parser.parse_known_args(argv[1:])
        if not given.topology:
            raise UsageError("--topology is needed, such as --topology v5e:16x16")
        flags = _flags_of_all(given.models) if given.all else [[]]
        configs = [parse_command_line([argv[0], *own, *rest])[0] for own in flags]
        targets = open_targets(given.topology.split(","))
        form = "json" if given.json else "table" if given.all else "text"
        if form == "table":
            say(text.HEADER)
        fit = [_compile(config, target, form) for config in configs for target in targets]
    except (UsageError, ValueError, jax.errors.JaxRuntimeError) as error:
        if "NOAH_TRACEBACK" in os.environ:
            raise
        return fail(error)
    return 0 if all(fit) else 1


def _compile(config: ConfigDict, target: Target, form: str) -> bool:
    """Compiles a configuration for a machine, tells what was found, and whether it fits."""
    name = config.model.name
    try:
        report = compile_for(config, target)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if form != "table":
            raise
        say(text.failed_row(name, target.name, error))
        return False
    smaller = None if report.fits else smaller_batch(config, target, report)
    if form == "json":
        batch_size = smaller and smaller.batch_size
        say(json.dumps(report.to_dict() | {"fitting_batch_size": batch_size}))
    elif form == "table":
        say(text.row(report, smaller))
    else:
        say(text.describe(report, smaller))
    return report.fits


def _flags_of_all(pattern: str) -> list[list[str]]:
    """`--config` of every variant that a file in `configs/` names."""
    found = []
    for path in sorted(config_folder().glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        variants = [p + b for p in ("", "noah_") for b in getattr(module, "BACKBONES", ())]
        found += [[f"--config={path}:{v}"] for v in fnmatch.filter(variants, pattern)]
    if not found:
        raise UsageError(f"no variant of the files in configs/ is called {pattern}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv))
