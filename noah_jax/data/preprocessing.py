"""What happens to an image before a model sees it; a record that travels with the weights.

Nothing here imports what decodes or resizes images, so that loading a model does not need it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from noah_jax.data.interpolation import INTERPOLATIONS, SQUASH, Resize
from noah_jax.errors import InputError

if TYPE_CHECKING:
    from noah_jax.data.transforms import EvalTransform

# Every setting, by the name it has in model.json, on the command line and in --set.
SETTINGS = ("mean", "std", "resize", "crop", "interpolation")
COVER = "cover"  # a word for resize=None

# Where a setting comes from.
GIVEN, RUN, PRETRAINED, ARCHITECTURE = "given", "run", "timm pretrained_cfg", "architecture"
TORCHVISION = "torchvision"


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the model sees it.

    Attributes:
      size: `(height, width)` of the model's input in pixels, which is cut out of the centre of the
        resized image; the setting "crop".
      resize: The shorter side of the image after resizing, in pixels. `None` resizes so that the
        image just covers `size`, "squash" resizes the whole image to `size` whatever its aspect.
      interpolation: How it is resized, one of `INTERPOLATIONS`.
      mean: Mean of each channel, for pixels in 0..1; it is subtracted.
      std: Standard deviation of each channel; the difference is divided by it.
      sources: Where each of `SETTINGS` comes from: "given" by the user, the "run", a "timm
        pretrained_cfg", "torchvision", or published for the "architecture".
    """

    size: tuple[int, int]
    resize: Resize
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sources: Mapping[str, str]

    def transform(self) -> "EvalTransform":
        """Returns the function from an image to uint8 `[*size, 3]`, which is not normalised."""
        from noah_jax.data.transforms import make_eval_transform  # needs Pillow and Numba

        return make_eval_transform(self.size, resize=self.resize, interpolation=self.interpolation)

    def override(self, settings: Mapping[str, Any], source: str) -> "Preprocessing":
        """Returns a record with some settings changed.

        If the crop changes and the resized side does not, that side keeps its ratio to the crop,
        unless it was given.

        Args:
          settings: Some of `SETTINGS`, with values as `check_setting` takes them.
          source: Where they come from.

        Raises:
          InputError: If a value does not fit, or the resized image is smaller than the crop.
        """
        values = {key: check_setting(key, value) for key, value in settings.items()}
        _check_range(values)
        size = values.get("crop", self.size)
        resize = self.resize
        if "resize" in values:
            resize = values["resize"]
        elif "crop" in values and isinstance(resize, int) and self.sources["resize"] != GIVEN:
            resize = int(min(size) * resize / min(self.size))
        if settings and isinstance(resize, int) and resize < min(size):
            raise InputError(
                f"resize={resize} is smaller than the crop of {_pixels(size)} pixels; resize must"
                f" be {min(size)} or more, or {COVER!r}"
            )
        return Preprocessing(
            size=size,
            resize=resize,
            interpolation=values.get("interpolation", self.interpolation),
            mean=values.get("mean", self.mean),
            std=values.get("std", self.std),
            sources={**self.sources, **dict.fromkeys(values, source)},
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what `model.json` holds; see `from_json`."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": self.resize,
            "crop": list(self.size),
            "interpolation": self.interpolation,
            "source": dict(self.sources),
        }

    def describe(self) -> str:
        """Returns all settings and where they come from, in one line."""
        values = {
            "mean": f"mean {_numbers(self.mean)}",
            "std": f"std {_numbers(self.std)}",
            "resize": f"resize {COVER if self.resize is None else self.resize}",
            "crop": f"crop {_pixels(self.size)}",
            "interpolation": f"interpolation {self.interpolation}",
        }
        if len(set(self.sources.values())) == 1:
            return f"{', '.join(values.values())} ({self.sources['mean']})"
        return ", ".join(f"{text} ({self.sources[key]})" for key, text in values.items())


def from_json(values: Mapping[str, Any]) -> Preprocessing:
    """Makes the record of what `Preprocessing.to_json` returns.

    Raises:
      InputError: If a setting is missing or does not fit.
    """
    if missing := [key for key in (*SETTINGS, "source") if key not in values]:
        raise InputError(f"preprocessing lacks {', '.join(missing)}")
    checked = {key: check_setting(key, values[key]) for key in SETTINGS}
    return Preprocessing(
        size=checked["crop"],
        resize=checked["resize"],
        interpolation=checked["interpolation"],
        mean=checked["mean"],
        std=checked["std"],
        sources={key: str(values["source"][key]) for key in SETTINGS},
    )


def of_run(
    section: Mapping[str, Any],
    *,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Preprocessing:
    """Returns the preprocessing of a run's own evaluation.

    Args:
      section: The section `data` of the run's configuration.
      image_size: `(height, width)` of the model's images in pixels.
      mean: The model's own mean, which `section` may replace.
      std: Likewise.
    """
    return Preprocessing(
        image_size,
        # Runs of older versions lack the key.
        SQUASH if section.get("squash") else section["eval_resize"],
        section["eval_interpolation"] or section["interpolation"],
        tuple(section["mean"] or mean),
        tuple(section["std"] or std),
        dict.fromkeys(SETTINGS, RUN),
    )


def check_setting(key: str, value: Any) -> Any:
    """Checks a setting and returns it as `Preprocessing` has it.

    Args:
      key: One of `SETTINGS`.
      value: For mean and std a number, or one for each channel; for resize pixels, `None` or
        "cover", or "squash"; for crop pixels or `(height, width)`; for interpolation a name. A
        text may hold the numbers, separated by commas.

    Raises:
      InputError: If there is no such setting, or the value does not fit.
    """
    if key in ("mean", "std"):
        return _channels(key, value)
    if key == "resize":
        if value == SQUASH:
            return SQUASH
        return None if value in (None, COVER) else _whole_numbers(key, value, 1)[0]
    if key == "crop":
        numbers = _whole_numbers(key, value, 2)
        return numbers * 2 if len(numbers) == 1 else numbers
    if key != "interpolation":
        raise InputError(f"there is no setting {key!r}; there are {', '.join(SETTINGS)}")
    name = str(value).lower().replace("_", "-")
    if name not in INTERPOLATIONS:
        raise InputError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {value!r}")
    return name


def _channels(key: str, value: Any) -> tuple[float, float, float]:
    what = f"{key} must be one number or three (red, green, blue)"
    try:
        numbers = [float(number) for number in _split(value)]
    except (TypeError, ValueError):
        raise InputError(f"{what}, got {value!r}") from None
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise InputError(f"{what}, got {value!r}")
    if key == "std" and min(numbers) <= 0:
        raise InputError(f"std must be above 0, got {value!r}")
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


def _check_range(values: Mapping[str, Any]) -> None:
    """Raises an InputError if a mean or standard deviation is not of pixels in 0..1."""
    for key in ("mean", "std"):
        numbers = values.get(key, (0.5,))
        if not 0 <= min(numbers) <= max(numbers) <= 1:
            raise InputError(
                f"{key} must be at most 1 and not negative, because pixels are in 0..1 (divide by"
                f" 255 if yours are in 0..255), got {_numbers(numbers)}"
            )


def _whole_numbers(key: str, value: Any, most: int) -> tuple[int, ...]:
    what = {"resize": f"pixels, {COVER!r} or {SQUASH!r}", "crop": "pixels, or height,width"}[key]
    try:
        numbers = [float(number) for number in _split(value)]
    except (TypeError, ValueError):
        numbers = []
    if not 1 <= len(numbers) <= most or not all(x >= 1 and x == x // 1 < 2**31 for x in numbers):
        raise InputError(f"{key} must be {what}, whole numbers of at least 1, got {value!r}")
    return tuple(map(int, numbers))


def _split(value: Any) -> list[Any]:
    """Returns the numbers in a text, a sequence or a number; a truth value is none."""
    values = value
    if isinstance(value, str):
        values = [part for part in value.strip("()[] ").split(",") if part.strip()]
    elif not hasattr(value, "__iter__"):
        values = [value]
    if any(isinstance(number, bool) for number in values):
        raise TypeError
    return list(values)


def _numbers(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ",".join(f"{x:g}" for x in values)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
