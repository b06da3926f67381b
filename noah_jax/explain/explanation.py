"""Computes what a model's head sees in one image."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from noah_jax.data.decoding import decode
from noah_jax.data.geometry import evaluation_crop
from noah_jax.errors import InputError
from noah_jax.heads.evidence import Contributions
from noah_jax.heads.registry import HEADS, heads_that_draw
from noah_jax.inference.device_memory import raise_if_out_of_memory
from noah_jax.inference.trained import TrainedModel
from noah_jax.models.base import Tree
from noah_jax.models.images import normalise

Crop = tuple[float, float, float, float]  # left, top, right, bottom as fractions of an image
PHOTO_SIDE = 800  # of the whole image in pixels


@dataclasses.dataclass(frozen=True)
class ClassEvidence:
    """What a head sees of one class in one image.

    `contributions` and `bias` add up to `logit`, apart from float32 rounding. Both are `None` if
    the head's logits are no sum over positions.

    Attributes:
      class_index: Index of the class.
      name: Name of the class.
      logit: The logit, as the model computes it.
      probability: Probability of the class, see `TrainedModel.probabilities`.
      attention: float32 `[blocks, rows, columns]`; each block sums to one.
      contributions: float32 `[blocks, rows, columns]`.
      bias: float32 `[blocks]`.
      shared_attention: Whether every other class has this attention too.
    """

    class_index: int
    name: str
    logit: float
    probability: float
    attention: np.ndarray
    contributions: np.ndarray | None = None
    bias: np.ndarray | None = None
    shared_attention: bool = False

    @property
    def sums(self) -> tuple[float, float] | None:
        """The sums of the contributions and of the bias, whose sum is the logit."""
        if self.contributions is None or self.bias is None:
            return None
        return float(self.contributions.sum(dtype=np.float64)), float(self.bias.sum(dtype=float))


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What one model sees in one image.

    Attributes:
      pixels: uint8 `[height, width, 3]`, the model's input before it is normalised.
      classes: The evidence for each of the chosen classes.
    """

    pixels: np.ndarray
    classes: tuple[ClassEvidence, ...]


@dataclasses.dataclass(frozen=True)
class ExplainedImage:
    """One image and what each of the models sees in it.

    Attributes:
      path: Path of the image.
      photo: The whole image, uint8 `[height, width, 3]`, no larger than `PHOTO_SIDE` pixels.
      crops: The part of it that each model sees, see `noah_jax.data.geometry.evaluation_crop`.
      by_model: The explanation by each model; all of them have the same classes.
    """

    path: str
    photo: np.ndarray
    crops: tuple[Crop, ...]
    by_model: tuple[Explanation, ...]


class Explainer:
    """Explains images by one model.

    Args:
      trained: The model.
      class_names: Names of its classes.

    Raises:
      InputError: If the model's head has no attention over positions.
    """

    def __init__(self, trained: TrainedModel, class_names: Sequence[str]):
        model, preprocessing = trained.model, trained.preprocessing
        head = model.arguments["head"]
        if head not in HEADS or "attention" not in HEADS[head].draws:
            raise InputError(
                f"{trained.path} is a {model.name} with a {head} head, which pools or reads a"
                " class token and has no attention over positions; the heads that can be"
                f" explained are {heads_that_draw('attention')}"
            )
        self._kind = HEADS[head]
        params, stats = jax.device_put((trained.params, trained.stats))
        self._trained = dataclasses.replace(trained, params=params, stats=stats)
        self._class_names = class_names
        self._preprocessing = preprocessing
        self._transform = preprocessing.transform()

        def evidence(
            params: Tree, stats: Tree, images: jax.Array, classes: jax.Array
        ) -> Contributions | jax.Array:
            images = normalise(images, preprocessing.mean, preprocessing.std)
            if "contributions" in self._kind.draws:
                return model.contributions(params, stats, images, classes)
            return model.attention(params, stats, images, classes)

        self._evidence = jax.jit(evidence, compiler_options=model.evaluation_options())

    @property
    def path(self) -> str:
        """The path of the model, as the user named it."""
        return self._trained.path

    def pixels(self, data: bytes, name: str) -> np.ndarray:
        """Decodes an image and prepares it for the model.

        Args:
          data: The encoded image.
          name: Name of the image, for messages.

        Returns:
          uint8 `[height, width, 3]`.

        Raises:
          CorruptImageError: If the image cannot be decoded.
        """
        return self._transform(decode(data, name))

    def crop(self, height: int, width: int) -> Crop:
        """Returns the part that the model sees of an image of some size in pixels."""
        preprocessing = self._preprocessing
        return evaluation_crop((height, width), preprocessing.size, preprocessing.resize)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """Computes the logits of one image, in full float32 precision on every platform.

        Args:
          pixels: uint8 `[height, width, 3]`, what the method `pixels` returns.

        Returns:
          float32 `[num_classes]`.
        """
        # Accelerators multiply float32 matrices in fewer bits by default.
        with jax.default_matmul_precision("float32"), raise_if_out_of_memory("an image"):
            return np.asarray(self._trained.predict(pixels[None]))[0]

    def explain(
        self, pixels: np.ndarray, logits: np.ndarray, classes: Sequence[int]
    ) -> Explanation:
        """Computes the evidence for chosen classes in one image.

        Args:
          pixels: uint8 `[height, width, 3]`, what the method `pixels` returns.
          logits: float32 `[num_classes]`, what the method `logits` returns for these pixels.
          classes: Indices of the classes.
        """
        with jax.default_matmul_precision("float32"), raise_if_out_of_memory("an image"):
            computed = self._evidence(
                self._trained.params,
                self._trained.stats,
                pixels[None],
                np.array(classes, np.int32),
            )
            # The class is the second axis of each, behind the blocks.
            parts = [np.asarray(x)[0] for x in jax.tree.leaves(computed)]
        probabilities = np.asarray(self._trained.probabilities(logits))
        return Explanation(
            pixels,
            tuple(
                ClassEvidence(
                    class_index=class_index,
                    name=self._class_names[class_index],
                    logit=float(logits[class_index]),
                    probability=float(probabilities[class_index]),
                    shared_attention=self._kind.shared_attention,
                    **{
                        key: part[:, i]
                        for key, part in zip(Contributions._fields, parts, strict=False)
                    },
                )
                for i, class_index in enumerate(classes)
            ),
        )
