"""Prints tables in Markdown, with the machine and the versions that they were made with."""

import datetime
import importlib.metadata
import pathlib
import platform
from collections.abc import Iterable, Sequence

import jax

import noah_jax
from noah_jax.benchmark.evaluation import tell_if_busy
from noah_jax.data.batches import num_cores

_PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "libtpu", "torch", "timm")


def print_heading(title: str) -> None:
    """Prints what a table shows, the date, the device and the versions of what is installed."""
    tell_if_busy()
    made_with = ", ".join([str(datetime.date.today()), device_name(), *versions()])
    print(f"{title}\n\n{made_with}\n")


def print_columns(names: Iterable[str], *, text: int = 1) -> None:
    """Prints the head of a table.

    Args:
      names: Names of the columns.
      text: How many columns from the left have text; the others have numbers.
    """
    names = list(names)
    print_row(names)
    print_row(["---" if i < text else "---:" for i in range(len(names))])


def print_row(cells: Sequence[str]) -> None:
    """Prints a row of a table at once."""
    print(f"| {' | '.join(cells)} |", flush=True)


def device_name() -> str:
    """Returns the kind of this process's first device; for a CPU its model and cores."""
    kind = jax.devices()[0].device_kind
    return cpu_name() if kind == "cpu" else kind


def cpu_name() -> str:
    """Returns the model of this machine's processor and the number of its cores."""
    return f"{_cpu_model()} ({num_cores()} cores)"


def versions() -> list[str]:
    """Returns name and version of this package, of Python and of each package that matters."""
    found = [f"noah_jax {noah_jax.__version__}", f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    """Returns the name that Linux gives this machine's processor, or what Python knows of it."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
