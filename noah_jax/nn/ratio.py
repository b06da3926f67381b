"""Finds the fraction of a number of channels that gives a whole number of them."""

import math


def ratio(whole: int, part: int) -> float:
    """Returns the fraction for which `int(whole * fraction)` is `part`."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else math.nextafter(fraction, math.inf)
