"""Times calls that take turns, so that the machine's noise meets all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Call(NamedTuple):
    """Work to time.

    Attributes:
      start: Starts the work, which a device may go on with after the call returned.
      wait: Waits for the end of the work whose result it is given.
    """

    start: Callable[[], Any]
    wait: Callable[[Any], Any]


class Timing(NamedTuple):
    """Seconds of one call in each round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Difference of the slowest and the fastest round, over the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    def over(self, other: "Timing") -> float:
        """Median ratio to another timing of the same rounds, whose turns met the same noise."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(a / b for a, b in pairs)


def take_turns(
    calls: Mapping[Any, Call], *, rounds: int, seconds: float, rest: float = 0.0
) -> dict[Any, Timing]:
    """Times each call once a round.

    A turn starts a call as often as `seconds` allow, at least once, and waits at its end alone, as
    a program does that keeps a device busy.

    Args:
      calls: The work by its name.
      rounds: Number of turns of each.
      seconds: Duration of a turn, roughly.
      rest: Seconds before each turn, in which another library's threads come to rest.

    Returns:
      Seconds of one call, by name.
    """
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(rest)
            call.wait(call.start())  # wakes the threads and warms up
            begin = time.perf_counter()
            call.wait(call.start())
            once = time.perf_counter() - begin
            if (count := int(seconds / max(once, 1e-9))) > 1:
                begin = time.perf_counter()
                for _ in range(count):
                    result = call.start()
                call.wait(result)
                once = (time.perf_counter() - begin) / count
            times[name].append(once)
    return {name: Timing(values) for name, values in times.items()}
