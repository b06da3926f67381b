"""From encoded bytes to RGB images."""

import io
import threading
from collections.abc import Callable

from PIL import Image

from noah_jax.data.sources import Source

ON_DAMAGE = ("replace", "stop")


class DamagedImageError(ValueError):
    """An image that cannot be decoded.

    Attributes:
      name: which image: its path, or its number in its set.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} cannot be decoded: {reason}")
        self.name = name


def decode(data: bytes, name: str = "the image") -> Image.Image:
    """An encoded image as RGB; the EXIF orientation is ignored, as the original does.

    Whatever PIL reads goes, by its content and not its name: other colour spaces, palettes
    and depths become RGB as PIL's `convert("RGB")` makes them.

    Args:
      data: the encoded image.
      name: which image it is, for the error.

    Raises:
      DamagedImageError: if it is truncated, or no image that PIL knows.
    """
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except MemoryError:
        raise  # the machine's trouble, not the image's
    except Image.UnidentifiedImageError as error:
        reason = f"its {len(data):,} bytes are no image that Pillow can read"
        raise DamagedImageError(name, reason if data else "it is empty") from error
    except Exception as error:  # whatever damaged bytes make a decoder raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedImageError(name, reason) from error


class DecodedSource:
    """A source whose images are decoded, and kept so if asked.

    Args:
      source: encoded images and labels by index.
      cache: whether to keep every image that was decoded in memory: for sets that fit
        there, it spares reading and decoding (0.3 ms for an image of the sample) from the
        second epoch on.
    """

    def __init__(self, source: Source, *, cache: bool = False):
        self._source = source
        self._kept: dict[int, tuple[Image.Image, int]] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The image and its label.

        Raises:
          DamagedImageError: if the image cannot be decoded.
        """
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        data, label = self._source[index]
        decoded = decode(data, self._source.describe(index)), label
        if self._kept is not None:
            self._kept[index] = decoded
        return decoded


class DamagedImages:
    """Which images could not be decoded, and what to do about another one.

    Args:
      policy: "replace" goes on without the image, "stop" raises its error.
      tell: called with one line for every damaged image, once.

    Raises:
      ValueError: on another policy.
    """

    def __init__(self, policy: str, tell: Callable[[str], None]):
        if policy not in ON_DAMAGE:
            raise ValueError(f"on_damage must be one of {', '.join(ON_DAMAGE)}, got {policy!r}")
        self._policy = policy
        self._tell = tell
        self._names: set[str] = set()
        self._lock = threading.Lock()  # the batches' threads all write here

    def __len__(self) -> int:
        return len(self._names)

    def add(self, error: DamagedImageError) -> None:
        """Counts and tells a damaged image.

        Raises:
          DamagedImageError: `error`, if the policy is to stop.
        """
        if self._policy == "stop":
            raise error
        with self._lock:
            if error.name in self._names:
                return
            self._names.add(error.name)
            count = len(self._names)
        self._tell(f"damaged image {count}: {error}")
