"""Feeds a run with batches of images on its devices."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from noah_jax import distributed
from noah_jax.data import batches
from noah_jax.data.batch import Batch
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.sampler import Sampler
from noah_jax.data.setup import DALI
from noah_jax.data.split import FolderSplit
from noah_jax.data.transforms import EvalTransform, TrainTransform
from noah_jax.data.window_choice import describe_window
from noah_jax.errors import InputError
from noah_jax.train.plan import Plan


@dataclasses.dataclass(frozen=True)
class InputPipeline:
    """The images of a run and how they become batches on its devices.

    Attributes:
      loader: What decodes the training images, "host" or "dali".
      name: What the training images are, for messages.
      class_names: The classes, in the order of their indices.
      multi_label: Whether an image has any number of labels instead of one.
      record: What the data are, see `noah_jax.data.record.record_data`.
      split: How class folders without splits were split, if they were.
      train_source: The training images.
      eval_source: The evaluation images.
      train_transform: The training transform.
      eval_transform: The evaluation transform.
      sampler: Decides which training image stands where.
      plan: How many images and steps the run has.
      num_threads: Number of reading threads; `None` for one per core.
      num_workers: Number of processes that share them, see `noah_jax.data.batches`.
      corrupt_images: The images that could not be decoded so far, on this host.
      mesh: The devices.
    """

    loader: str
    name: str
    class_names: list[str]
    multi_label: bool
    record: dict[str, Any]
    split: FolderSplit | None
    train_source: DecodedSource
    eval_source: DecodedSource
    train_transform: TrainTransform
    eval_transform: EvalTransform
    sampler: Sampler
    plan: Plan
    num_threads: int | None
    num_workers: int | None
    corrupt_images: CorruptImages
    mesh: Mesh

    @property
    def eval_capacity(self) -> int:
        """The number of images in an evaluation, padding of the last batch included."""
        batch_size = self.plan.eval_batch_size
        return -(-len(self.eval_source) // batch_size) * batch_size

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """Yields the training batches of the steps after `start_step`."""
        load = batches.train_batches
        if self.loader == DALI:
            from noah_jax.data.dali import loader  # needs DALI, which is an extra

            load = functools.partial(loader.train_batches, mesh=self.mesh)
        return load(
            self.train_source,
            self.train_transform,
            self.sampler,
            start_step=start_step,
            total_steps=self.plan.total_steps,
            num_workers=self.num_workers,
            **self._shared_arguments(),
        )

    def eval_batches(self) -> Iterator[Batch]:
        """Yields the evaluation batches, with every image once."""
        return batches.eval_batches(
            self.eval_source,
            self.eval_transform,
            batch_size=self.plan.eval_batch_size,
            **self._shared_arguments(),
        )

    def image_indices(self, step: int) -> list[int]:
        """Returns the indices of the images that the given step (the first is 1) trains on."""
        rows = range(self.sampler.batch_size)
        return [self.sampler.at(step - 1, row)[1] for row in rows]

    def describe_order(self) -> str | None:
        """Says in one line how images are shuffled, if not as a whole, and how they come here."""
        return describe_window(self.sampler.windows, self.train_source.encoded)

    def check_evaluated(self, examples: int) -> None:
        """Raises an InputError if an evaluation has no images, because none has a label."""
        if not examples:
            raise InputError(
                f"none of the {len(self.eval_source):,} images of {self.eval_source.name} can be"
                f" evaluated: {self.corrupt_images.unlabelled:,} images have no label,"
                f" {len(self.corrupt_images):,} cannot be decoded; choose another data.eval_split"
            )

    def metadata(self) -> dict[str, Any]:
        """Returns what the processes of a run must have in common, in words."""
        return {
            "the number of training images": len(self.train_source),
            "the number of evaluation images": len(self.eval_source),
            "the number of classes": len(self.class_names),
            "the shards that are shuffled together": self.sampler.shards_per_window,
            "the fingerprint of the training images": self.record["train"].get("fingerprint"),
            "the fingerprint of the evaluation images": self.record["eval"].get("fingerprint"),
            "the size of the training images": self.record["train"].get("pixels"),
        }

    def _shared_arguments(self) -> dict[str, Any]:
        return {
            "num_threads": self.num_threads,
            "put": functools.partial(distributed.put_batch, mesh=self.mesh),
            "corrupt_images": self.corrupt_images,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
