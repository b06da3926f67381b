"""Tests whether two models differ on the same images: McNemar's test and a paired bootstrap.

The exact test is McNemar's (1947) with the binomial distribution; the mid-p value is that of
Fagerland, Lydersen and Laake (2013), which is less conservative.
"""

import dataclasses
from typing import Any

import numpy as np

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """How often two models, A and B, are right on the same images.

    Attributes:
      both: Images on which both are right.
      only_a: Images on which only A is right.
      only_b: Images on which only B is right.
      neither: Images on which both are wrong.
      p: McNemar's exact two-sided p-value, for that A and B are equally often right.
      mid_p: Its mid-p value.
      interval: The 95 % interval of the accuracy of A less that of B, in percentage points.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float
    mid_p: float
    interval: tuple[float, float]

    @property
    def images(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """The accuracy of A less that of B, in percentage points."""
        return 100 * (self.only_a - self.only_b) / self.images

    def to_json(self) -> dict[str, Any]:
        """Returns everything in plain values."""
        return {
            "images": self.images,
            "both": self.both,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "neither": self.neither,
            "difference": self.difference,
            "interval": list(self.interval),
            "resamples": RESAMPLES,
            "seed": SEED,
            "p_exact": self.p,
            "p_mid": self.mid_p,
        }


def paired_test(right_a: np.ndarray, right_b: np.ndarray) -> PairedTest:
    """Compares two models.

    Args:
      right_a: Whether A is right on each image, bool `[images]`.
      right_b: Whether B is, on the same images in the same order.

    >>> test = paired_test(np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 0], bool))
    >>> test.only_a, test.only_b, test.difference, test.p, test.mid_p
    (2, 0, 50.0, 0.5, 0.25)
    """
    only_a = int((right_a & ~right_b).sum())
    only_b = int((right_b & ~right_a).sum())
    both = int((right_a & right_b).sum())
    neither = len(right_a) - both - only_a - only_b
    p, mid_p = mcnemar(only_a, only_b)
    counts = (both + neither, only_a, only_b)
    return PairedTest(both, only_a, only_b, neither, p, mid_p, _bootstrap(counts))


def mcnemar(only_a: int, only_b: int) -> tuple[float, float]:
    """Computes McNemar's exact two-sided p-value and its mid-p value.

    Args:
      only_a: Images on which only the one model is right.
      only_b: Images on which only the other one is.
    """
    from scipy.stats import binom

    number, fewer = only_a + only_b, min(only_a, only_b)
    tail = float(binom.cdf(fewer, number, 0.5))
    p = min(1.0, 2 * tail)
    mid_p = min(1.0, 2 * tail - float(binom.pmf(fewer, number, 0.5)))
    return p, mid_p


def _bootstrap(counts: tuple[int, int, int]) -> tuple[float, float]:
    """Returns the percentile interval of the difference, in percentage points.

    Images drawn with replacement have a multinomial number of each kind, so the numbers are drawn.

    Args:
      counts: Images on which the models agree, only A is right, and only B is.
    """
    images = sum(counts)
    drawn = np.random.default_rng(SEED).multinomial(images, np.array(counts) / images, RESAMPLES)
    differences = 100 * (drawn[:, 1] - drawn[:, 2]) / images
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
