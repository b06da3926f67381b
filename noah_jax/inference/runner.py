"""Trained models on many images: full batches over all devices, every image once."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from noah_jax import distributed
from noah_jax.data.batches import eval_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.inference.step import make_predict_step
from noah_jax.inference.trained import Preprocessing, Trained
from noah_jax.models.base import Model

# Of the logits [batch, classes] and the labels [batch]; every leaf is [batch, ...].
Compute = Callable[[jax.Array, jax.Array], dict[str, jax.Array]]

_IN_FLIGHT = 2  # batches on the devices while the host waits for an earlier one


class Inference:
    """One model's forward pass, compiled once, with what is computed from its logits.

    Args:
      model: the model.
      preprocessing: of its images.
      compute: what is wanted of the logits and labels of a batch.
      batch_size: images at a time; rounded up to a multiple of the devices.
      devices: by default all there are.
    """

    def __init__(
        self,
        model: Model,
        preprocessing: Preprocessing,
        compute: Compute,
        *,
        batch_size: int,
        devices: list[jax.Device] | None = None,
    ):
        self._mesh = distributed.make_mesh(devices)
        self._transform = preprocessing.transform()
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        predict = make_predict_step(
            model, mean=preprocessing.mean, std=preprocessing.std, mesh=self._mesh
        )

        def step(params, stats, batch):
            return compute(predict(params, stats, batch["image"]), batch["label"])

        self._step = jax.jit(step, compiler_options=model.evaluation_options())

    def run(
        self,
        trained: Trained,
        source: DecodedSource,
        *,
        corrupt_images: CorruptImages,
        num_threads: int | None = None,
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """What is computed for every image, in order, a batch at a time.

        Args:
          trained: the weights.
          source: the images.
          corrupt_images: what to do about those that cannot be decoded: they are left out.
          num_threads: that decode; `None` is one for every core.

        Yields:
          Which images of the source, and what was computed, for them alone.
        """
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
        in_flight: collections.deque[tuple[int, np.ndarray, Any]] = collections.deque()
        for number, (mask, batch) in enumerate(batches):
            in_flight.append((number, mask, self._step(*weights, batch)))
            if len(in_flight) > _IN_FLIGHT:
                yield self._fetch(*in_flight.popleft())
        while in_flight:
            yield self._fetch(*in_flight.popleft())

    def _fetch(
        self, number: int, mask: np.ndarray, computed: dict[str, jax.Array]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rows = np.flatnonzero(mask)
        found = {key: np.asarray(value)[rows] for key, value in computed.items()}
        return number * self._batch_size + rows, found
