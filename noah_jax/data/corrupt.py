"""Keeps count of the images that cannot be used, and decides whether to go on without them."""

from collections.abc import Callable

from noah_jax.errors import CorruptImageError, InputError, UnlabelledImageError

POLICIES = ("replace", "stop")


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
