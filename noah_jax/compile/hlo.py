"""What a compiled program's text says: its collectives, its donation, its cycles."""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

_KINDS = (
    "all-reduce",
    "reduce-scatter",
    "all-gather",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# An asynchronous pair is counted at its start.
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")


class Collective(NamedTuple):
    """Collectives that are alike.

    Attributes:
      kind: such as "all-reduce".
      bytes: of one of them, what a device holds of its result; of a reduce-scatter, of its
        operand.
      dtypes: of what is exchanged.
      group_size: devices that take part together; 2 for a permute.
      source: the operation of the model that it comes from, as far as XLA tells.
      count: how many there are.
    """

    kind: str
    bytes: int
    dtypes: str
    group_size: int
    source: str
    count: int = 1


def collectives(text: str, num_devices: int) -> list[Collective]:
    """All collectives of a program, the largest first; in a loop once for every trip.

    In loops whose trips XLA does not know they count once.

    Args:
      text: the compiled program, `jax.stages.Compiled.as_text()`.
      num_devices: devices it runs on.
    """
    found = Counter()
    trips = _trips(text)
    name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
        if not (match := _COLLECTIVE.match(line)):
            continue
        result, kind, start = match.groups()
        if start and kind != "all-reduce":
            result = _top_level(result)[1]  # of (operands, results, ...)
        group_size = _group_size(line, num_devices)
        size = _num_bytes(result) * (group_size if kind == "reduce-scatter" else 1)
        dtypes = ", ".join(sorted({dtype for dtype, _ in _SHAPE.findall(result)}))
        source = re.search(r'op_name="([^"]*)"', line)
        found[kind, size, dtypes, group_size, source[1][:80] if source else ""] += trips(name)
    alike = [Collective(*key, count) for key, count in found.items()]
    return sorted(alike, key=lambda c: -c.bytes * c.count)


def donated_parameters(text: str) -> int:
    """How many parameters of a program give their memory to a result."""
    header = text[: text.index("\n")]
    aliases = re.search(r"input_output_alias=\{(.*?) \}", header)
    return aliases[1].count("alias)") if aliases else 0


def num_parameters(text: str) -> int:
    """How many parameters a program has; JAX drops those that are not read."""
    computations, entry = _computations(text)
    return sum(" parameter(" in line for line in computations[entry])


def estimated_cycles(text: str) -> int | None:
    """XLA's estimate of a TPU program's cycles on one core; loops' bodies count once.

    Pallas kernels, and what overlaps, are not seen. `None` where XLA estimates nothing.
    """
    if '"estimated_cycles"' not in text:
        return None
    computations, entry = _computations(text)

    def cycles(name: str) -> int:
        total = 0
        for line in computations[name]:
            # A fusion's estimate includes what it calls.
            if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
                total += int(estimate[1])
            elif " while(" in line:
                total += cycles(_body(line))
            elif " call(" in line:
                total += cycles(re.search(r" to_apply=%?([\w.-]+)", line)[1])
            elif " conditional(" in line:
                total += max(map(cycles, _branches(line)))
        return total

    return cycles(entry)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the entry's name."""
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
    """How often a computation runs, by its name, because of the loops it is the body of."""
    computations, _ = _computations(text)
    loops = {}
    for name, lines in computations.items():
        for line in lines:
            if known := " while(" in line and re.search(r'"known_trip_count":{"n":"(\d+)"', line):
                loops[_body(line)] = int(known[1]), name

    def trips(name: str) -> int:
        own, outer = loops.get(name, (1, None))
        return own * trips(outer) if outer else own

    return trips


def _body(line: str) -> str:
    """What a loop repeats."""
    return re.search(r" body=%?([\w.-]+)", line)[1]


def _branches(line: str) -> list[str]:
    if match := re.search(r" branch_computations=\{([^}]*)\}", line):
        return [name.strip(" %") for name in match[1].split(",")]
    return re.findall(r" (?:true|false)_computation=%?([\w.-]+)", line)


def _num_bytes(shapes: str) -> int:
    total = 0
    for dtype, dimensions in _SHAPE.findall(shapes):
        bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
        total += math.prod(int(d) for d in dimensions.split(",") if d) * bits // 8
    return total


def _top_level(text: str) -> list[str]:
    """The elements of a tuple type."""
    parts, depth = [""], 0
    for char in text[1:-1]:
        depth += (char in "({[") - (char in ")}]")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _group_size(line: str, num_devices: int) -> int:
    """Of `{{0,1},{2,3}}`, `[2,4]<=[8]`, or `mesh['a'=2,'b'=4] {'b'}`; `{}` is all devices."""
    if "source_target_pairs=" in line:
        return 2
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[(?:\d+,)?(\d+)\]<=", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        # A part of an axis is 'a':(before)size.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    return num_devices
