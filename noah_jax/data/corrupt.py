"""Keeps count of the images that cannot be used, and decides whether to go on without them."""

from collections.abc import Callable
from typing import TypeVar

from noah_jax.errors import CorruptImageError, InputError, UnlabelledImageError

POLICIES = ("replace", "stop")
# If so many images in a row are corrupt, the dataset is not one of images.
_MAX_IN_A_ROW = 100

Used = TypeVar("Used")


class CorruptImages:
    """The images of a run that could not be decoded, or have no label, so far on this host.

    Its length is the number of different images that could not be decoded.

    Args:
      policy: "replace" goes on without the image; "stop" raises its error.
      tell: Called with one line for each corrupt image, once, and for the first image without a
        label.

    Raises:
      InputError: If the policy is unknown.
    """

    def __init__(self, policy: str, tell: Callable[[str], None]):
        if policy not in POLICIES:
            raise InputError(
                f"data.on_corrupt_image must be one of {', '.join(POLICIES)}, got {policy!r}"
            )
        self._policy = policy
        self._tell = tell
        self._names: set[str] = set()
        self._unlabelled: set[str] = set()

    def __len__(self) -> int:
        return len(self._names)

    @property
    def unlabelled(self) -> int:
        """The number of different images without a label."""
        return len(self._unlabelled)

    def add(self, error: CorruptImageError) -> None:
        """Counts an image and tells of it, unless it is known already.

        Raises:
          CorruptImageError: `error`, if the policy is to stop.
        """
        if self._policy == "stop":
            raise error
        if isinstance(error, UnlabelledImageError):
            self._unlabelled.add(error.name)
            if len(self._unlabelled) == 1:
                self._tell(f"{error}; it is not used, and others like it are counted")
        elif error.name not in self._names:
            self._names.add(error.name)
            self._tell(f"corrupt image {len(self._names)}: {error}")


def first_usable(use: Callable[[int], Used], length: int, errors: list[CorruptImageError]) -> Used:
    """Uses a training image, or the next one of the source that can be used.

    The replacement is the next image of the source, not of the sampler, so that it is always the
    same.

    Args:
      use: Takes how many images further the image is in the source, 0 first.
      length: Number of images in the source.
      errors: The errors of the images that cannot be used are added to it.

    Raises:
      InputError: If too many images in a row cannot be used.
    """
    tries = min(length, _MAX_IN_A_ROW)
    for offset in range(tries):
        try:
            return use(offset)
        except CorruptImageError as error:
            errors.append(error)
    raise InputError(f"{tries} images in a row cannot be used; the last: {errors[-1]}")
