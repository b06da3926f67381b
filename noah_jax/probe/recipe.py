"""The optimizers of probes, and the recipes that were published for them.

Linear heads: MAE (He et al., 2022, appendix A.1 and `main_linprobe.py`), LARS with momentum 0.9,
trust coefficient 0.001, base learning rate 0.1 for a batch of 256, no weight decay, 90 epochs of
which 10 warm up, cosine to 0, features standardised by a BatchNorm without parameters. "Attention,
Please!" (Psomas et al., 2025) has the same for attentive heads.

Other heads: V-JEPA (Bardes et al., 2024, `configs/evals/vitl16_in1k.yaml`), AdamW with weight decay
0.001 and a learning rate of 0.001 for a batch of 1024, cosine to 0.

Learning rates: the published ones and those around them, as DINOv2 (Oquab et al., 2023,
`dinov2/eval/linear.py`) trains one linear head for each of 13 rates at once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import optax

from noah_jax.train.optimizer import decay_mask
from noah_jax.train.schedules import make_schedule

REFERENCE_BATCH = 256
_WARMUP_FRACTION = 1 / 9
_TRUST_COEFFICIENT = 0.001
_MOMENTUM = 0.9

_LEARNING_RATES = {
    "lars": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "adamw": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "sgd": (1e-4, 1e-3, 1e-2, 1e-1),
}
_WEIGHT_DECAY = {"lars": 0.0, "adamw": 0.001, "sgd": 0.0}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
      optimizer: "lars", "adamw" or "sgd".
      learning_rates: The peaks to choose from, for a batch of `REFERENCE_BATCH`.
      weight_decay: Weight decay, which spares biases and one-dimensional parameters.
      epochs: Epochs.
      batch_size: Features a step.
      standardise: Whether features get the mean 0 and the deviation 1 over the training images.
    """

    optimizer: str
    learning_rates: tuple[float, ...]
    weight_decay: float
    epochs: int
    batch_size: int
    standardise: bool

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the factor of the peak by step: a linear warm-up, then a cosine to 0."""
        section = {
            "schedule": "cosine",
            "learning_rate": 1.0,
            "final_learning_rate": 0.0,
            "warmup_learning_rate": 0.0,
            "warmup_epochs": self.epochs * _WARMUP_FRACTION,
            "per_epoch": False,
            "lr_delay_epochs": 0,
        }
        return make_schedule(section, epochs=self.epochs, steps_per_epoch=steps_per_epoch)

    def transformation(self, spared: Sequence[str]) -> optax.GradientTransformation:
        """Returns the optimizer without its learning rate.

        Args:
          spared: Paths of further parameters, `head/...`, that weight decay spares.
        """

        def mask(params: Any) -> Any:
            return decay_mask({"head": params}, decay_all=False, no_decay=spared)["head"]

        decay = optax.add_decayed_weights(self.weight_decay, mask)
        if self.optimizer == "adamw":
            return optax.chain(optax.scale_by_adam(0.9, 0.999, 1e-8), decay)
        if self.optimizer == "sgd":
            return optax.chain(decay, optax.trace(_MOMENTUM))
        # LARS as MAE has it: biases and one-dimensional parameters keep their gradients.
        trust = optax.scale_by_trust_ratio(trust_coefficient=_TRUST_COEFFICIENT)
        return optax.chain(decay, optax.masked(trust, mask), optax.trace(_MOMENTUM))

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as JSON holds it."""
        return dataclasses.asdict(self)


def make_recipe(
    head: str,
    *,
    images: int,
    epochs: int,
    batch_size: int | None,
    optimizer: str | None,
    learning_rates: Sequence[float] | None,
    weight_decay: float | None,
) -> Recipe:
    """Returns the recipe of a head; what is `None` is the published one's.

    Args:
      head: Name of the head.
      images: Number of training images.
      epochs: Epochs.
      batch_size: Features a step, at most the number of images.
      optimizer: See `Recipe`.
      learning_rates: See `Recipe`.
      weight_decay: See `Recipe`.
    """
    optimizer = optimizer or ("lars" if head == "linear" else "adamw")
    if batch_size is None:
        # Full batches of a power of two, at least eight an epoch where there are so many images.
        batch_size = min(1024, max(16, 1 << max(images // 8, 1).bit_length() - 1))
    return Recipe(
        optimizer=optimizer,
        learning_rates=tuple(sorted(learning_rates or _LEARNING_RATES[optimizer])),
        weight_decay=_WEIGHT_DECAY[optimizer] if weight_decay is None else weight_decay,
        epochs=epochs,
        batch_size=min(batch_size, images),
        standardise=head == "linear",
    )


def describe(recipe: Recipe, head: str, parameters: int) -> str:
    """Says in one line how a head is trained."""
    rates = " ".join(f"{rate:g}" for rate in recipe.learning_rates)
    return (
        f"{head}: {parameters:,} parameters, {recipe.optimizer}, learning rates {rates} times"
        f" {recipe.batch_size}/{REFERENCE_BATCH}, weight decay {recipe.weight_decay:g},"
        f" {recipe.epochs} epochs in batches of {recipe.batch_size}"
    )


def at_the_edge(recipe: Recipe, learning_rate: float) -> str:
    """Says that the best learning rate is the smallest or the largest; else returns nothing."""
    rates: Mapping[float, str] = {
        recipe.learning_rates[0]: "smallest",
        recipe.learning_rates[-1]: "largest",
    }
    if len(recipe.learning_rates) == 1 or learning_rate not in rates:
        return ""
    return f"the best learning rate {learning_rate:g} is the {rates[learning_rate]} that was tried"
