"""What a model's NOAH head sees in one image, in numbers."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from noah_jax.data.decoding import decode
from noah_jax.errors import InputError
from noah_jax.inference.trained import TrainedModel
from noah_jax.models.images import normalise


@dataclasses.dataclass(frozen=True)
class ClassEvidence:
    """What one image's logit of one class is made of.

    The sum of `contributions` and `bias` is `logit`, but for float32's rounding.

    Attributes:
      number: of the class.
      name: of the class.
      logit: of the class, as the model computes it.
      probability: of the class, see `TrainedModel.probabilities`.
      attention: float32 `[head_num, rows, columns]`; each block sums to one.
      contributions: float32 `[head_num, rows, columns]`.
      bias: float32 `[head_num]`.
    """

    number: int
    name: str
    logit: float
    probability: float
    attention: np.ndarray
    contributions: np.ndarray
    bias: np.ndarray

    @property
    def merged_attention(self) -> np.ndarray:
        """`[rows, columns]`, the mean over the blocks; sums to one."""
        return self.attention.mean(0)

    @property
    def merged_contributions(self) -> np.ndarray:
        """`[rows, columns]`, the sum over the blocks."""
        return self.contributions.sum(0)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What one model sees in one image.

    Attributes:
      pixels: uint8 `[height, width, 3]`, what the model was shown.
      classes: the evidence of each class asked for.
    """

    pixels: np.ndarray
    classes: tuple[ClassEvidence, ...]


class Explainer:
    """Explains images by one model.

    Args:
      trained: the model.
      names: of its classes.

    Raises:
      ValueError: if the model has no NOAH head.
    """

    def __init__(self, trained: TrainedModel, names: Sequence[str]):
        model, preprocessing = trained.model, trained.preprocessing
        kind = model.arguments["head"]
        if kind != "noah":
            raise InputError(
                f"{trained.path} is a {model.name} with a {kind} head, which pools or reads a"
                " class token and has no attention over positions for each class; only models"
                " with the NOAH head can be explained"
            )
        self._names = names
        self._probabilities = trained.probabilities
        self._weights = jax.device_put((trained.params, trained.stats))
        self._trained = dataclasses.replace(
            trained, params=self._weights[0], stats=self._weights[1]
        )
        self._transform = preprocessing.transform()

        def contributions(params, stats, images, classes):
            images = normalise(images, preprocessing.mean, preprocessing.std)
            return model.contributions(params, stats, images, classes)

        self._contributions = jax.jit(contributions, compiler_options=model.evaluation_options())

    def pixels(self, data: bytes, name: str) -> np.ndarray:
        """What the model is shown of an encoded image; raises a CorruptImageError."""
        return self._transform(decode(data, name))

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """float32 `[num_classes]`."""
        # Accelerators would multiply float32 in fewer bits.
        with jax.default_matmul_precision("float32"):
            return np.asarray(self._trained.predict(pixels[None]))[0]

    def explain(
        self, pixels: np.ndarray, logits: np.ndarray, classes: Sequence[int]
    ) -> Explanation:
        """The evidence for the chosen classes.

        Args:
          pixels: see `pixels`.
          logits: see `logits`.
          classes: their numbers.
        """
        with jax.default_matmul_precision("float32"):
            found = self._contributions(*self._weights, pixels[None], np.array(classes, np.int32))
        attention, contributions, bias = (np.asarray(x)[0] for x in found)
        probabilities = np.asarray(self._probabilities(logits))
        return Explanation(
            pixels,
            tuple(
                ClassEvidence(
                    number=number,
                    name=self._names[number],
                    logit=float(logits[number]),
                    probability=float(probabilities[number]),
                    attention=attention[:, i],
                    contributions=contributions[:, i],
                    bias=bias[:, i],
                )
                for i, number in enumerate(classes)
            ),
        )
