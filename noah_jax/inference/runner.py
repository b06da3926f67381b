"""Runs trained models on many images: full batches over all devices, every image once."""

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax import distributed
from noah_jax.console import working
from noah_jax.data.batch import Batch
from noah_jax.data.batches import eval_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.inference.device_memory import SMALLER_BATCH, raise_if_out_of_memory
from noah_jax.inference.step import make_predict_step
from noah_jax.inference.trained import Preprocessing, TrainedModel
from noah_jax.models.base import Model, Tree

# From the logits [batch, num_classes], or what else the forward pass gives, and the labels [batch]
# to values of each image; every array is [batch, ...].
Compute = Callable[[Any, jax.Array], dict[str, jax.Array]]

_IN_FLIGHT = 2  # batches on the devices while the host waits for an earlier one


class Inference:
    """The forward pass of one model and what is computed from its logits, compiled once.

    Args:
      model: The model.
      preprocessing: How its images are prepared.
      compute: What to compute from the logits and labels of a batch.
      make_forward: Makes the forward pass; `make_encode_step` gives features in place of logits.
      batch_size: Images at a time; it is rounded up to a multiple of the number of devices.
      devices: Devices to use; `None` uses all there are.
    """

    def __init__(
        self,
        model: Model,
        preprocessing: Preprocessing,
        compute: Compute,
        *,
        make_forward: Callable[..., Callable[[Tree, Tree, jax.Array], Any]] = make_predict_step,
        batch_size: int,
        devices: list[jax.Device] | None = None,
    ):
        self._mesh = distributed.make_mesh(devices)
        self._transform = preprocessing.transform()
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        forward = make_forward(
            model, mean=preprocessing.mean, std=preprocessing.std, mesh=self._mesh
        )

        def step(params: Tree, stats: Tree, batch: Batch) -> dict[str, jax.Array]:
            outputs = forward(params, stats, jnp.asarray(batch["image"]))
            return compute(outputs, jnp.asarray(batch["label"]))

        self._step = jax.jit(step, compiler_options=model.evaluation_options())

    def run(
        self,
        trained: TrainedModel,
        source: DecodedSource,
        *,
        corrupt_images: CorruptImages,
        num_threads: int | None = None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Computes the values of every image, in order, a batch at a time.

        Args:
          trained: The weights; its model must be of the kind that this object was made for.
          source: The images.
          corrupt_images: Records the images that cannot be decoded; they are left out.
          num_threads: Threads that decode; `None` is one for every core.

        Yields:
          `(indices, values)` of a batch: the indices of its images in the source, int
          `[images]`, and what was computed for them, `[images, ...]`.

        Raises:
          ValueError: If a batch does not fit into the memory of the devices.
        """
        name = trained.model.name
        with raise_if_out_of_memory(f"{name} with its weights"):
            weights = jax.device_put(
                (trained.params, trained.stats), distributed.replicated(self._mesh)
            )
        batches = eval_batches(
            source,
            self._transform,
            batch_size=self._batch_size,
            num_threads=num_threads,
            put=lambda batch: (batch["mask"], distributed.put_batch(batch, self._mesh)),
            corrupt_images=corrupt_images,
        )
        in_flight: collections.deque[tuple[int, np.ndarray, dict[str, jax.Array]]]
        in_flight = collections.deque()
        for number, (mask, batch) in enumerate(batches):
            # The first batch compiles.
            compiling = contextlib.nullcontext() if number else working(f"compiling {name}")
            with raise_if_out_of_memory(self._batch_of_images(), SMALLER_BATCH), compiling:
                values = self._step(*weights, batch)
            in_flight.append((number, np.asarray(mask), values))
            if len(in_flight) > _IN_FLIGHT:
                yield self._fetch(*in_flight.popleft())
        while in_flight:
            yield self._fetch(*in_flight.popleft())

    def _batch_of_images(self) -> str:
        return f"a batch of {self._batch_size} images"

    def _fetch(
        self, number: int, mask: np.ndarray, values: dict[str, jax.Array]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Waits for a batch's values and drops the rows that are padding."""
        rows = np.flatnonzero(mask)
        with raise_if_out_of_memory(self._batch_of_images(), SMALLER_BATCH):
            fetched = {key: np.asarray(value)[rows] for key, value in values.items()}
        return number * self._batch_size + rows, fetched
