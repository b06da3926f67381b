"""Says how the images of a prepared dataset differ from the originals, and names such sets.

`noah_jax.data.shrink` makes these sets. Nothing here needs more than the dataset's description.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from noah_jax.data.source import Source
from noah_jax.errors import InputError

QUALITY = 95  # of the JPEG files, unless the user chooses another
# Colours are stored at half the resolution, as cameras do and as most of ImageNet's files have it.
# At the full resolution, decoding takes a quarter longer.
SUBSAMPLING = "4:2:0"
_METADATA_KEY = "shrinking"
_SUFFIX = re.compile(r"_\d+(_q\d+|_raw)?$|_raw$")


@dataclasses.dataclass(frozen=True)
class Shrinking:
    """What was done to the images of a dataset.

    Attributes:
      max_side: The most pixels that the longer side has; `None` for any number.
      quality: Quality of the JPEG files of the images that were larger, 1 to 100.
      raw: Whether the images are uint8 pixels instead of encoded ones.

    Raises:
      InputError: If a number is out of its range, or nothing would be done.
    """

    max_side: int | None = None
    quality: int = QUALITY
    raw: bool = False

    def __post_init__(self) -> None:
        if self.max_side is None and not self.raw:
            raise InputError("max_side or raw is needed to shrink images")
        if self.max_side is not None and self.max_side < 1:
            raise InputError(f"max_side must be at least 1 pixel, got {self.max_side}")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality must be 1 to 100, got {self.quality}")

    @property
    def suffix(self) -> str:
        """What the name of such a dataset adds to that of the original."""
        side = "" if self.max_side is None else f"_{self.max_side}"
        if self.raw:
            return f"{side}_raw"
        return side if self.quality == QUALITY else f"{side}_q{self.quality}"

    def describe(self) -> str:
        """Says it in words, which follow "images"."""
        kind = "raw pixels" if self.raw else f"JPEG quality {self.quality}"
        return kind if self.max_side is None else f"of at most {self.max_side} px, {kind}"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height in pixels of an image that had these."""
        longer = max(width, height)
        if self.max_side is None or longer <= self.max_side:
            return width, height
        # Rounded to whole pixels.
        width, height = (
            (2 * side * self.max_side + longer) // (2 * longer) for side in (width, height)
        )
        return max(width, 1), max(height, 1)

    def to_metadata(self, original: str, splits: list[str]) -> dict[str, Any]:
        """Returns the entry for a dataset's metadata.

        Args:
          original: Full name of the dataset that it was made of.
          splits: The splits whose images were shrunk.
        """
        return {
            _METADATA_KEY: {
                **dataclasses.asdict(self),
                "subsampling": SUBSAMPLING,
                "original": original,
                "splits": splits,
            }
        }


def read_shrinking(
    metadata: Mapping[str, Any] | None, split: str | None = None
) -> Shrinking | None:
    """Reads from a dataset's metadata what was done to its images, or to those of a split.

    Returns:
      What was done; `None` if the images are as they were.
    """
    entry = (metadata or {}).get(_METADATA_KEY)
    if entry is None or (split is not None and split not in entry["splits"]):
        return None
    return Shrinking(entry["max_side"], entry["quality"], entry["raw"])


def shrinking_of(source: Source) -> Shrinking | None:
    """Returns what was done to the images of a source; `None` if they are as they were."""
    return getattr(source, "shrinking", None)


def describe_pixels(train: Source, evaluation: Source) -> str | None:
    """Says in a line what a run trains and evaluates on, if any of its images were shrunk."""
    trained, evaluated = shrinking_of(train), shrinking_of(evaluation)
    if trained is None and evaluated is None:
        return None
    words = "the original images" if trained is None else f"images {trained.describe()}"
    line = f"trains on {_dataset(train)} ({words}), evaluates on "
    if evaluated is None:
        return f"{line}the original images"
    return f"{line}{_dataset(evaluation)} (images {evaluated.describe()})"


def _dataset(source: Source) -> str:
    return source.name.partition("/")[0]


def original_name(dataset: str) -> str:
    """Returns the name of a dataset without what `Shrinking.suffix` adds."""
    return _SUFFIX.sub("", dataset)
