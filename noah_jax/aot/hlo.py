"""Reads the text of a compiled program: its collectives, its donated memory, its cycles."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

_KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# An asynchronous collective is a pair of operations, which counts at its start.
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")


def program_text(compiled: jax.stages.Compiled) -> str:
    """Returns the text of a compiled program."""
    text = compiled.as_text()
    if text is None:
        raise NotImplementedError("this backend of JAX does not show its compiled programs")
    return text


def memory_stats(compiled: jax.stages.Compiled) -> Any:
    """Returns XLA's account of a compiled program's memory, on one device."""
    stats = compiled.memory_analysis()
    if stats is None:
        raise NotImplementedError("this backend of JAX does not tell a program's memory")
    return stats


class Collective(NamedTuple):
    """One or more collectives that are alike.

    Attributes:
      kind: Kind of the collective, such as "all-reduce".
      bytes: Bytes of its result on one device; for a reduce-scatter, of its operand.
      dtypes: Dtypes of what is exchanged.
      group_size: Number of devices that take part together; 2 for a permute.
      source: The operation of the model that it comes from, as far as XLA names it.
      number: How often the program runs it.
    """

    kind: str
    bytes: int
    dtypes: str
    group_size: int
    source: str
    number: int = 1

    @property
    def total_bytes(self) -> int:
        """Bytes of all of them."""
        return self.bytes * self.number


def collectives(text: str, num_devices: int) -> list[Collective]:
    """Returns all collectives of a program, the largest first.

    A collective in a loop counts once for every trip, or once where XLA does not know the trips.

    Args:
      text: The compiled program, `jax.stages.Compiled.as_text()`.
      num_devices: Number of devices that the program runs on.
    """
    numbers: Counter[tuple[str, int, str, int, str]] = Counter()
    trips = _trips(text)
    name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
        if not (match := _COLLECTIVE.match(line)):
            continue
        result, kind, start = match.groups()
        if start and kind != "all-reduce":
            result = _top_level(result)[1]  # the tuple is (operands, results, ...)
        group_size = _group_size(line, num_devices)
        size = _num_bytes(result) * (group_size if kind == "reduce-scatter" else 1)
        dtypes = ", ".join(sorted({dtype for dtype, _ in _SHAPE.findall(result)}))
        source = re.search(r'op_name="([^"]*)"', line)
        key = kind, size, dtypes, group_size, source[1][:80] if source else ""
        numbers[key] += trips(name)
    alike = [Collective(*key, number) for key, number in numbers.items()]
    return sorted(alike, key=lambda collective: -collective.total_bytes)


def donated_parameters(text: str) -> int:
    """Returns how many parameters of a program give their memory to a result."""
    header = text[: text.index("\n")]
    aliases = re.search(r"input_output_alias=\{(.*?) \}", header)
    return aliases[1].count("alias)") if aliases else 0


def num_parameters(text: str) -> int:
    """Returns how many parameters a program has; JAX drops those that are not read."""
    computations, entry = split_computations(text)
    return sum(" parameter(" in line for line in computations[entry])


def estimated_cycles(text: str) -> int | None:
    """Returns XLA's estimate of a TPU program's cycles on one core.

    XLA does not see what overlaps, and it estimates nothing for Pallas kernels: see
    `kernel_cycles`.

    Returns:
      The cycles; `None` where XLA estimates nothing, as for GPUs and CPUs.
    """
    if '"estimated_cycles"' not in text:
        return None
    return sum(cycles for _, cycles in estimates(text))


def estimates(text: str) -> list[tuple[str, int]]:
    """Returns the operations that XLA estimates: the line of each, and the cycles of all its runs.

    An operation of a loop runs once for every trip, or once where XLA does not know the trips. Of a
    condition, the dearest branch counts.
    """
    computations, entry = split_computations(text)

    def walk(name: str, runs: int) -> Iterator[tuple[str, int]]:
        for line in computations[name]:
            # The estimate of a fusion includes what it calls.
            if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
                yield line, runs * int(estimate[1])
            elif " while(" in line:
                yield from walk(called_computation(line, "body"), runs * _known_trips(line))
            elif " call(" in line:
                yield from walk(called_computation(line, "to_apply"), runs)
            elif " conditional(" in line:
                found = [list(walk(branch, runs)) for branch in _branches(line)]
                yield from max(found, key=lambda each: sum(cycles for _, cycles in each))

    return list(walk(entry, 1))


def split_computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif computations:
            lines.append(line)
    return computations, entry


def _trips(text: str) -> Callable[[str], int]:
    """Returns a function from a computation's name to how often loops make it run."""
    computations, _ = split_computations(text)
    loops: dict[str, tuple[int, str | None]] = {}
    for name, lines in computations.items():
        for line in lines:
            if " while(" in line:
                loops[called_computation(line, "body")] = _known_trips(line), name

    def trips(name: str) -> int:
        own, outer = loops.get(name, (1, None))
        return own * trips(outer) if outer else own

    return trips


def _known_trips(line: str) -> int:
    """Returns the trips of a loop; 1 where XLA does not know them."""
    known = re.search(r'"known_trip_count":{"n":"(\d+)"', line)
    return int(known[1]) if known else 1


def called_computation(line: str, role: str) -> str:
    """Returns the name of the computation that an operation calls in this role."""
    found = re.search(rf" {role}=%?([\w.-]+)", line)
    if found is None:
        raise ValueError(f"no {role}= in {line.strip()[:200]!r}")
    return found[1]


def _branches(line: str) -> list[str]:
    if match := re.search(r" branch_computations=\{([^}]*)\}", line):
        return [name.strip(" %") for name in match[1].split(",")]
    return re.findall(r" (?:true|false)_computation=%?([\w.-]+)", line)


def _num_bytes(shapes: str) -> int:
    total = 0
    for dtype, dimensions in _SHAPE.findall(shapes):
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        total += math.prod(int(d) for d in dimensions.split(",") if d) * bits // 8
    return total


def _top_level(text: str) -> list[str]:
    """Returns the elements of a tuple type."""
    parts, depth = [""], 0
    for char in text[1:-1]:
        depth += (char in "({[") - (char in ")}]")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _group_size(line: str, num_devices: int) -> int:
    """Returns how many devices exchange together.

    XLA writes them as `{{0,1},{2,3}}`, `[2,4]<=[8]` or `mesh['a'=2,'b'=4] {'b'}`; `{}` means all.
    """
    if "source_target_pairs=" in line:
        return 2
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[(?:\d+,)?(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        # A fraction of an axis is written 'a':(before)size.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    return num_devices
