"""From encoded bytes to RGB images."""

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from noah_jax.data.sources import Source

ON_DAMAGE = ("replace", "stop")
# In other colour spaces (CMYK, and RGB itself) Pillow's own conversion counts.
_PLAIN_JPEG = ("YCbCr", "Gray")


class DamagedImageError(ValueError):
    """An image that cannot be decoded.

    Attributes:
      name: which image: its path, or its number in its set.
      reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # all that a copy in another process is made of
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} cannot be decoded: {self.reason}"


def decode(data: bytes, name: str = "the image") -> np.ndarray:
    """An encoded image as uint8 `[height, width, 3]`, its EXIF orientation ignored.

    Whatever PIL reads goes, by its content and not its name: other colour spaces, palettes
    and depths become RGB as PIL's `convert("RGB")` makes them. The original ignores the
    orientation too.

    Args:
      data: the encoded image.
      name: which image it is, for the error.

    Raises:
      DamagedImageError: if it is truncated, or no image that PIL knows.
    """
    if (pixels := _decode_jpeg(data)) is not None:
        return pixels
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except MemoryError:
        raise  # the machine's trouble, not the image's
    except Image.UnidentifiedImageError as error:
        reason = f"its {len(data):,} bytes are no image that Pillow can read"
        raise DamagedImageError(name, reason if data else "it is empty") from error
    except Exception as error:  # whatever damaged bytes make a decoder raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedImageError(name, reason) from error


def decode_fast(data: bytes, name: str = "the image") -> np.ndarray:
    """As `decode`, but quicker and a level or so off.

    JPEG's inverse cosine transform and the enlargement of the colours are approximate.
    """
    pixels = _decode_jpeg(data, fastdct=True, fastupsample=True)
    return decode(data, name) if pixels is None else pixels


def _decode_jpeg(data: bytes, **options: bool) -> np.ndarray | None:
    """The pixels of an ordinary, whole JPEG image; `None` is for Pillow to decide.

    Both decoders are libjpeg-turbo; this one takes three quarters of the time, because it
    decodes into one array at once.
    """
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in _PLAIN_JPEG:
            return None
        return simplejpeg.decode_jpeg(data, **options)
    except ValueError:  # no JPEG, or one that is damaged, which Pillow may still read
        return None


class DecodedSource:
    """A source whose images are decoded, and kept so if asked.

    Args:
      source: encoded images and labels by index.
      fast: whether to decode by `decode_fast`.
      cache: whether to keep every image that was decoded in memory: for sets that fit
        there, it spares reading and decoding (0.3 ms for an image of the sample) from the
        second epoch on.
    """

    def __init__(self, source: Source, *, fast: bool = False, cache: bool = False):
        self._source = source
        self._decode = decode_fast if fast else decode
        self._kept: dict[int, tuple[np.ndarray, int]] | None = {} if cache else None

    @property
    def cached(self) -> bool:
        """Whether images are kept."""
        return self._kept is not None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """The image and its label.

        Raises:
          DamagedImageError: if the image cannot be decoded.
        """
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        data, label = self._source[index]
        decoded = self._decode(data, self._source.describe(index)), label
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

    def __len__(self) -> int:
        return len(self._names)

    def add(self, error: DamagedImageError) -> None:
        """Counts and tells a damaged image.

        Raises:
          DamagedImageError: `error`, if the policy is to stop.
        """
        if self._policy == "stop":
            raise error
        if error.name not in self._names:
            self._names.add(error.name)
            self._tell(f"damaged image {len(self._names)}: {error}")
