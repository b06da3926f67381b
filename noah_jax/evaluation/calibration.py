"""Measures how well a classifier's probabilities say how often it is right.

Follows Guo et al., "On Calibration of Modern Neural Networks" (2017): the expected calibration
error over bins of equal width, and temperature scaling, which divides all logits by one number. The
score of Brier (1950) is the sum of squares over all classes, 0 to 2.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from noah_jax.errors import InputError

NUM_BINS = 15
SPLIT_SEED = 0
# The temperatures that are tried. A model that is always right, or never, has no best one.
LOWEST, HIGHEST = 1 / 64, 64.0
_CHUNK = 4096  # images at a time, so that no more than the logits themselves is in memory


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well the probabilities of some images fit.

    Attributes:
      ece: Expected calibration error, 0 to 1.
      nll: Mean negative log-likelihood of the labels, in nats.
      brier: Mean Brier score, 0 to 2.
      counts: Images in each bin of the confidence, int `[NUM_BINS]`. Bin m has the confidences
        above m / NUM_BINS, up to (m + 1) / NUM_BINS inclusive.
      confidence: Mean confidence of the images in each bin, `[NUM_BINS]`; NaN without images.
      accuracy: Fraction of them that is right, likewise.
    """

    ece: float
    nll: float
    brier: float
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    def to_json(self) -> dict[str, float]:
        """Returns the three scores."""
        return {"ece": self.ece, "nll": self.nll, "brier": self.brier}

    def bins(self) -> list[dict[str, Any]]:
        """Returns the bins of the confidence, from the lowest; `None` where there are no images."""
        return [
            {
                "above": number / NUM_BINS,
                "images": int(count),
                "confidence": float(self.confidence[number]) if count else None,
                "accuracy": float(self.accuracy[number]) if count else None,
            }
            for number, count in enumerate(self.counts)
        ]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The calibration of a model on some images, as it is and with a fitted temperature.

    Attributes:
      all_images: Scores of all images at temperature 1.
      temperature: The temperature that gives the first half of the images the least NLL.
      fitted_on: Number of images in that half.
      before: Scores of the other half at temperature 1.
      after: Its scores at `temperature`.
    """

    all_images: Scores
    temperature: float
    fitted_on: int
    before: Scores
    after: Scores

    def to_json(self) -> dict[str, Any]:
        """Returns everything in plain values."""
        return {
            **self.all_images.to_json(),
            "bins": self.all_images.bins(),
            "temperature": self.temperature,
            "fitted_on": self.fitted_on,
            "measured_on": int(self.before.counts.sum()),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


def calibrate(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Measures the calibration, and fits a temperature on a half of the images.

    The halves are drawn without regard to labels, always alike for the same number of images.

    Args:
      logits: float32 `[images, classes]`.
      labels: Column of each image's label, int `[images]`.

    Raises:
      InputError: If a logit is not finite, or there are fewer than two images.
    """
    if len(labels) < 2:
        raise InputError(f"--calibration needs at least two images, got {len(labels)}")
    if not all(np.isfinite(logits[rows]).all() for rows in _chunks(np.arange(len(labels)))):
        raise InputError("--calibration needs finite logits, and some are not")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    first, second = (np.sort(half) for half in np.split(order, [len(order) // 2]))
    temperature = fit_temperature(logits, labels, first)
    return Calibration(
        all_images=score(logits, labels),
        temperature=temperature,
        fitted_on=len(first),
        before=score(logits, labels, second),
        after=score(logits, labels, second, temperature),
    )


def score(
    logits: np.ndarray,
    labels: np.ndarray,
    images: np.ndarray | None = None,
    temperature: float = 1.0,
) -> Scores:
    """Scores the probabilities of images.

    Args:
      logits: float32 `[images, classes]`.
      labels: Column of each image's label, int `[images]`.
      images: Indices of the images that count; `None` for all.
      temperature: What the logits are divided by.
    """
    images = np.arange(len(labels)) if images is None else images
    nll = brier = 0.0
    counts = np.zeros(NUM_BINS, int)
    confidences, hits = np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    for rows in _chunks(images):
        log_p = _log_softmax(logits[rows] / np.float64(temperature))
        p, label = np.exp(log_p), labels[rows]
        own = np.arange(len(rows)), label
        nll -= float(log_p[own].sum())
        brier += float(((p**2).sum(-1) - 2 * p[own] + 1).sum())
        confidence = p.max(-1)
        # A confidence on the edge belongs to the bin below it.
        bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
        np.add.at(counts, bins, 1)
        np.add.at(confidences, bins, confidence)
        np.add.at(hits, bins, p.argmax(-1) == label)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = confidences / counts, hits / counts
    return Scores(
        ece=float(np.abs(hits - confidences).sum() / len(images)),
        nll=nll / len(images),
        brier=brier / len(images),
        counts=counts,
        confidence=confidence,
        accuracy=accuracy,
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray, images: np.ndarray) -> float:
    """Finds the temperature with the least NLL, between `LOWEST` and `HIGHEST`.

    The NLL is convex in the inverse of the temperature, so its slope has one root.

    Args:
      logits: float32 `[images, classes]`.
      labels: Column of each image's label, int `[images]`.
      images: Indices of the images that count.
    """
    from scipy.optimize import brentq

    def slope(log_inverse: float) -> float:
        total = 0.0
        for rows in _chunks(images):
            values = logits[rows].astype(np.float64)
            p = np.exp(_log_softmax(values * np.exp(log_inverse)))
            own = np.take_along_axis(values, labels[rows][:, None], -1)[:, 0]
            total += float(((p * values).sum(-1) - own).sum())
        return total

    low, high = -np.log(HIGHEST), -np.log(LOWEST)
    if slope(high) <= 0:
        return LOWEST
    if slope(low) >= 0:
        return HIGHEST
    return float(np.exp(-brentq(slope, low, high, xtol=1e-6)))


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), _CHUNK):
        yield images[start : start + _CHUNK]
