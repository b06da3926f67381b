"""Keeps count of the images that cannot be decoded, and decides whether to go on without them."""

from collections.abc import Callable

from noah_jax.errors import CorruptImageError, InputError

POLICIES = ("replace", "stop")


class CorruptImages:
    """The images of a run that could not be decoded so far, on this host.

    Its length is the number of different images.

    Args:
      policy: "replace" goes on without the image; "stop" raises its error.
      tell: Called with one line for each corrupt image, once.

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

    def __len__(self) -> int:
        return len(self._names)

    def add(self, error: CorruptImageError) -> None:
        """Counts a corrupt image and tells of it, unless it is known already.

        Raises:
          CorruptImageError: `error`, if the policy is to stop.
        """
        if self._policy == "stop":
            raise error
        if error.name not in self._names:
            self._names.add(error.name)
            self._tell(f"corrupt image {len(self._names)}: {error}")
