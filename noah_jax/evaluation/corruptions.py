"""ImageNet-C: the corruptions, where their folders lie, and the mean corruption error (mCE).

Follows Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (2019). The corruption error (CE) of a model is its summed error over the five
severities, divided by AlexNet's; mCE is the mean CE of the 15 standard corruptions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from noah_jax.data.folders import folder_names

SEVERITIES = (1, 2, 3, 4, 5)

# AlexNet's top-1 error at severity 1 to 5, from the table "AlexNet ImageNet-C Error" of the README
# of github.com/hendrycks/robustness, as of commit 76d9393 (2019-10-10); later versions link to a
# spreadsheet instead.
STANDARD: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
# The four that the authors keep for validation; mCE leaves them out.
EXTRA: dict[str, tuple[float, ...]] = {
    "speckle_noise": (0.66192, 0.74440, 0.90246, 0.94548, 0.97268),
    "gaussian_blur": (0.54732, 0.70444, 0.82574, 0.89864, 0.95940),
    "spatter": (0.47196, 0.62194, 0.75052, 0.84132, 0.90182),
    "saturate": (0.59342, 0.65514, 0.51174, 0.70834, 0.82260),
}
ALEXNET = {**STANDARD, **EXTRA}
# The archives of ImageNet-C; the folders of their corruptions may lie in folders of these names.
_ARCHIVES = ("noise", "blur", "weather", "digital", "extra")


@dataclasses.dataclass(frozen=True)
class CorruptionErrors:
    """The errors of a model on the corruptions of ImageNet-C that were there.

    Attributes:
      errors: Top-1 error, 0 to 1, by corruption and severity.
    """

    errors: Mapping[str, Mapping[int, float]]

    def missing(self, corruptions: Mapping[str, Sequence[float]] = ALEXNET) -> list[str]:
        """Returns what was not evaluated, as `fog` or `fog/3`."""
        names = []
        for name in corruptions:
            there = self.errors.get(name, {})
            absent = [f"{name}/{severity}" for severity in SEVERITIES if severity not in there]
            names += [name] if len(absent) == len(SEVERITIES) else absent
        return names

    def mean(self, name: str) -> float | None:
        """Returns the mean error over the severities; `None` if one of them is missing."""
        there = self.errors.get(name, {})
        if len(there) < len(SEVERITIES):
            return None
        return sum(there.values()) / len(SEVERITIES)

    def ce(self, name: str) -> float | None:
        """Returns the corruption error, 1 for AlexNet's; `None` if a severity is missing."""
        mean = self.mean(name)
        return None if mean is None else mean / mean_alexnet(name)

    @property
    def mean_error(self) -> float | None:
        """The mean error over the standard corruptions, unless something of them is missing."""
        return _mean([self.mean(name) for name in STANDARD])

    @property
    def mce(self) -> float | None:
        """The mean corruption error, 1 for AlexNet's, unless something is missing."""
        return _mean([self.ce(name) for name in STANDARD])

    def to_json(self) -> dict[str, Any]:
        """Returns everything in percent."""
        return {
            "mce": _percent(self.mce),
            "mean_error": _percent(self.mean_error),
            "missing": self.missing(),
            "corruptions": {name: self.row(name) for name in ALEXNET if name in self.errors},
        }

    def row(self, name: str) -> dict[str, Any]:
        """Returns what was measured with a corruption, in percent; `None` where it is missing."""
        there = self.errors.get(name, {})
        return {
            "standard": name in STANDARD,
            "errors": [_percent(there.get(severity)) for severity in SEVERITIES],
            "mean": _percent(self.mean(name)),
            "alexnet": 100 * mean_alexnet(name),
            "ce": _percent(self.ce(name)),
        }


def mean_alexnet(name: str) -> float:
    """Returns AlexNet's mean error over the severities of a corruption, 0 to 1."""
    return sum(ALEXNET[name]) / len(SEVERITIES)


def find_corruptions(root: epath.Path) -> dict[str, dict[int, epath.Path]]:
    """Finds the folders of ImageNet-C, `CORRUPTION/SEVERITY`.

    They lie in the folder itself, or in those of the archives (`noise/`, `blur/`, ...).

    Returns:
      The folders by corruption and severity, in the order of the paper; empty if the folder is
      laid out otherwise.
    """
    names = set(folder_names(root))
    places = {name: root / name for name in ALEXNET if name in names}
    for archive in (name for name in _ARCHIVES if name in names):
        inside = set(folder_names(root / archive))
        found = {name: root / archive / name for name in ALEXNET if name in inside}
        places = {**found, **places}
    folders = {}
    for name in (name for name in ALEXNET if name in places):
        there = set(folder_names(places[name]))
        if severities := [severity for severity in SEVERITIES if str(severity) in there]:
            folders[name] = {severity: places[name] / str(severity) for severity in severities}
    return folders


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
