"""What a user of the probe can choose, with its defaults; imports nothing heavy."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from noah_jax.errors import UsageError

OPTIMIZERS = ("lars", "adamw", "sgd")
CACHE_DTYPES = ("float16", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Choices:
    """The options of `noah-jax probe`.

    Attributes:
      backbone: A registered name, a model's folder or a PyTorch file.
      heads: Names of registered heads.
      knn: Whether to classify by the nearest neighbours too.
      dataset: Name of the dataset; `None` takes that of the backbone's training, else the sample.
      data_dir: Folder in which TFDS keeps prepared datasets.
      train_split: The images to train on; `None` takes "train", or what the backbone's training
        took.
      eval_split: The images to measure on; `None` likewise, see `open_sources`.
      ema: Whether to take the moving average of the backbone's weights.
      settings: Preprocessing that replaces the backbone's own.
      neighbours: Numbers of neighbours.
      temperature: Temperature of the neighbours' votes.
      epochs: Epochs of each training.
      batch_size: Features a step; `None` takes 1024, or less for small datasets.
      optimizer: One of `OPTIMIZERS` for all heads; `None` for each head's own.
      learning_rates: Learning rates for a batch of 256; `None` for each optimizer's own.
      weight_decay: Weight decay; `None` for each optimizer's own.
      holdout: Fraction of the training images on which the learning rate is chosen.
      seeds: Seeds of the heads' weights and of the order of the images.
      dtype: Compute dtype of backbone and heads; `None` takes the backbone's own.
      cache: Folder of the cached features.
      cache_dtype: One of `CACHE_DTYPES`.
      encoder_batch: Images that the backbone encodes at a time.
      num_threads: Threads that decode; `None` is one for every core.
      workdir: Folder of the results.
      dry_run: Whether only to say what would be done.
    """

    backbone: str
    heads: Sequence[str] = ("linear", "noah")
    knn: bool = False
    dataset: str | None = None
    data_dir: str | None = None
    train_split: str | None = None
    eval_split: str | None = None
    ema: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    neighbours: Sequence[int] = (10, 20, 100, 200)
    temperature: float = 0.07
    epochs: int = 90
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rates: Sequence[float] | None = None
    weight_decay: float | None = None
    holdout: float = 0.1
    seeds: Sequence[int] = (0, 1, 2)
    dtype: str | None = None
    cache: str = "~/.cache/noah_jax/features"
    cache_dtype: str = "float16"
    encoder_batch: int = 128
    num_threads: int | None = None
    workdir: str = "runs/probe"
    dry_run: bool = False

    def check(self) -> None:
        """Checks what needs no backbone and no data.

        Raises:
          UsageError: If a value does not fit, or there is nothing to do.
        """
        if not self.heads and not self.knn:
            raise UsageError("there is nothing to do: name --heads, or give --knn")
        for rate in self.learning_rates or ():
            if not 0 < rate < math.inf:
                raise UsageError(f"--learning-rates must be above 0, got {rate:g}")
        if not 0 < self.holdout < 1:
            raise UsageError(f"--holdout must be between 0 and 1, got {self.holdout:g}")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"--temperature must be above 0, got {self.temperature:g}")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"--weight-decay must be 0 or more, got {self.weight_decay:g}")
        if min(self.seeds) < 0:
            raise UsageError(f"--seeds must be 0 or more, got {min(self.seeds)}")
