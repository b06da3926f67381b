"""Reads which operations of a compiled TPU program take its cycles, and where each comes from."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from noah_jax.aot.hlo import called_computation, estimates, split_computations

_OPERATION = re.compile(r"^\s*(?:ROOT )?%?\S+ = (.+?) ([a-z][\w-]*)\(")
_LAYOUT = re.compile(r"\{[^}]*\}")
# What a fusion that only moves numbers consists of.
_MOVES = {
    *("bitcast", "bitcast-convert", "broadcast", "concatenate", "constant", "convert", "copy"),
    *("dynamic-slice", "dynamic-update-slice", "get-tuple-element", "pad", "parameter"),
    *("reshape", "reverse", "slice", "transpose", "tuple"),
}
_PACKAGE = "noah_jax/"


class Operation(NamedTuple):
    """An operation of a compiled program.

    Attributes:
      kind: "product" (matrix products and convolutions, with what is fused to them), "move"
        (copies, changes of layout and dtype, slices), or "other".
      place: File and function that it comes from, as `nn/norms.py LayerNorm.__call__`; that of
        this package nearest to it, or "" where XLA does not tell.
      result: Type and shape of its result.
      cycles: XLA's estimate for all its runs.
    """

    kind: str
    place: str
    result: str
    cycles: int


def operations(text: str) -> list[Operation]:
    """Returns the operations with an estimate of a compiled program for TPUs, in its order.

    Their cycles are those of `hlo.estimates`.

    Args:
      text: The compiled program, `jax.stages.Compiled.as_text()`.
    """
    computations, _ = split_computations(text)
    places = _places(text)
    found = []
    for line, cycles in estimates(text):
        match = _OPERATION.match(line)
        result, opcode = match.groups() if match else ("", "")
        frame = re.search(r"stack_frame_id=(\d+)", line)
        place = places.get(int(frame[1]), "") if frame else ""
        kind = _kind(opcode, line, computations)
        found.append(Operation(kind, place, _LAYOUT.sub("", result), cycles))
    return found


def _kind(opcode: str, line: str, computations: dict[str, list[str]]) -> str:
    if opcode == "fusion":
        inside = {
            match[2]
            for each in computations[called_computation(line, "calls")]
            if (match := _OPERATION.match(each))
        }
    else:
        inside = {opcode}
    if inside & {"convolution", "dot"}:
        return "product"
    return "move" if inside <= _MOVES or opcode.startswith("copy") else "other"


def _places(text: str) -> dict[int, str]:
    """Returns the place of each stack frame by its number."""
    files = {n: name for n, name in _table(text, "FileNames", r'"(.*)"')}
    functions = {n: name for n, name in _table(text, "FunctionNames", r'"(.*)"')}
    locations = {
        n: (int(file), int(function))
        for n, file, function in _table(
            text, "FileLocations", r"\{file_name_id=(\d+) function_name_id=(\d+)"
        )
    }
    frames = {
        n: (int(location), int(parent))
        for n, location, parent in _table(
            text, "StackFrames", r"\{file_location_id=(\d+) parent_frame_id=(\d+)"
        )
    }

    # The first frame has no parent, whose number is 0 or 1.
    none = frames[1][1] if 1 in frames else 0

    def place(frame: int) -> str:
        while frame in frames:
            location, parent = frames[frame]
            file, function = locations[location]
            _, package, path = files[file].rpartition(_PACKAGE)
            if package:
                return f"{path} {functions[function].replace('.<locals>', '')}"
            frame = parent - none
        return ""

    return {frame: place(frame) for frame in frames}


def _table(text: str, title: str, row: str) -> Iterator[tuple]:
    """Reads the rows of a table in a program's header: a number, and what `row` captures."""
    start = re.search(rf"^{title}\n", text, re.MULTILINE)
    if start:
        for line in text[start.end() :].split("\n\n", 1)[0].splitlines():
            if match := re.match(rf"(\d+) {row}", line):
                yield int(match[1]), *match.groups()[1:]
