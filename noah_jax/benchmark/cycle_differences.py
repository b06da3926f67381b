"""Prints where the cycles of two compiled train steps differ."""

from collections import Counter
from collections.abc import Sequence

from noah_jax.aot.operations import Operation

_ROWS = 20  # places that are printed; the others are summed
_KERNELS = "the head's kernels, counted"
_UNKNOWN = "(not told)"


def print_difference(linear: Sequence[Operation], other: Sequence[Operation], kernels: int) -> None:
    """Prints the places of the program whose cycles differ most, in thousand cycles.

    A place is a function of this package, and a kind of operation there: "product", "move" (copies
    and changes of layout) or "other". XLA fuses operations of several places and tells one of
    them, so neighbours can trade cycles.

    Args:
      linear: Operations of the step with a linear head.
      other: Operations of the step with another head.
      kernels: Cycles of the other head's kernels, which XLA does not estimate.
    """
    before, after = _by_place(linear), _by_place(other)
    after[_KERNELS] += kernels
    names = sorted(before | after, key=lambda name: -abs(after[name] - before[name]))
    names = [name for name in names if before[name] or after[name]]
    rows = [(name, before[name], after[name]) for name in names[:_ROWS]]
    rest = names[_ROWS:]
    if rest:
        old, new = (sum(cycles[name] for name in rest) for cycles in (before, after))
        rows.append((f"{len(rest)} other places", old, new))
    rows.append(("all", before.total(), after.total()))
    print(f"    {'thousand cycles':56}{'linear':>10}{'this':>10}{'':>10}")
    for name, old, new in rows:
        shown = f"{old / 1e3:10.1f}{new / 1e3:10.1f}{(new - old) / 1e3:+10.1f}"
        print(f"    {name:56}{shown}", flush=True)


def _by_place(operations: Sequence[Operation]) -> Counter[str]:
    cycles: Counter[str] = Counter()
    for operation in operations:
        cycles[f"{operation.kind:8}{operation.place or _UNKNOWN}"] += operation.cycles
    return cycles
