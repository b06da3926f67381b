"""Runs DALI's pipelines, one for each device, some batches ahead of their use."""

import collections
from collections.abc import Callable, Sequence

import jax
import numpy as np
from nvidia.dali import Pipeline

from noah_jax import console
from noah_jax.data.dali.encoded import EncodedBatch
from noah_jax.data.dali.graph import build_pipeline, feed
from noah_jax.data.dali.requirements import decodes_on_gpu
from noah_jax.data.transforms import TrainTransform
from noah_jax.errors import LoaderError, one_line

# What DALI raises where a batch cannot be decoded, or the memory does not suffice.
_FAILURES = (RuntimeError, MemoryError)
# If DALI refuses so many images, the host's loader would be faster.
_MOST_REFUSED = 100

# Takes a step, a row and the indices of refused images; returns the row anew, a batch of one.
LoadRow = Callable[[int, int, set[int]], EncodedBatch]


class Decoder:
    """Decodes batches in the order in which they are submitted.

    What DALI refuses although its header looks fine, the host decodes. It is found by trying the
    images of a failed batch one by one, so that it depends on nothing but the image.

    Attributes:
      on_gpu: Whether GPUs decode, not the CPU.
      depth: Number of batches that are under way at once.

    Args:
      transform: The training transform.
      devices: The devices that share the rows, in the order of their rows.
      rows: Number of rows of a batch; the number of devices divides it.
      num_threads: Number of DALI's threads on the CPU, which the devices share.
      depth: Number of batches that are under way at once, at least 1.
      load_row: Loads a row of a step's batch again.
      describe: Returns how messages call the image with an index.

    Raises:
      InputError: If DALI does not decode on such devices.
      LoaderError: If DALI cannot be started on a device.
    """

    def __init__(
        self,
        transform: TrainTransform,
        devices: Sequence[jax.Device],
        *,
        rows: int,
        num_threads: int,
        depth: int,
        load_row: LoadRow,
        describe: Callable[[int], str],
    ):
        self._transform = transform
        self._devices = devices
        self.on_gpu = decodes_on_gpu(devices)
        self._rows = rows // len(devices)
        self._threads = max(1, num_threads // len(devices))
        self._load_row = load_row
        self._describe = describe
        self._refused: set[int] = set()
        self._pending: collections.deque[tuple[int, EncodedBatch]] = collections.deque()
        self._start(depth)

    @property
    def pending(self) -> int:
        """The number of batches that were submitted and not yet collected."""
        return len(self._pending)

    def submit(self, step: int, batch: EncodedBatch) -> None:
        """Hands a step's batch to DALI, without waiting for it."""
        batch = self._without_refused(step, batch)
        self._pending.append((step, batch))
        try:
            self._feed(batch)
        except _FAILURES as error:  # A batch before this one has failed meanwhile.
            self._begin_anew(error)

    def collect(self) -> tuple[EncodedBatch, list[jax.Array]]:
        """Waits for the oldest of the submitted batches.

        Returns:
          The batch, in which the host may have replaced some images, and its pixels on the
          devices, uint8 `[rows, height, width, 3]` each.

        Raises:
          LoaderError: If DALI fails on something else than an image, or on too many images.
        """
        while True:
            try:
                outputs = [pipeline.outputs()[0].as_tensor() for pipeline in self._pipelines]
                break
            except _FAILURES as error:
                self._begin_anew(error)
        _, batch = self._pending.popleft()
        shards = [self._placed(*pair) for pair in zip(outputs, self._devices, strict=True)]
        return batch, shards

    def _placed(self, tensor: object, device: jax.Device) -> jax.Array:
        """Returns the array of a tensor of DALI's; on a GPU it is not copied.

        `nvidia.dali.plugin.jax` does the same, but not for DALI's CPU backend on several devices.
        """
        if self.on_gpu:
            return jax.dlpack.from_dlpack(tensor, device=device)
        return jax.device_put(np.array(tensor), device)

    def _start(self, depth: int) -> None:
        self.depth = depth
        self._fed = 0
        self._pipelines = [
            self._build(device, rows=self._rows, depth=depth) for device in self._devices
        ]

    def _build(self, device: jax.Device, *, rows: int, depth: int) -> Pipeline:
        gpu = device.local_hardware_id if self.on_gpu else None
        try:
            return build_pipeline(
                self._transform, rows=rows, num_threads=self._threads, gpu=gpu, depth=depth
            )
        except _FAILURES as error:
            raise _failed(f"DALI cannot start on {device}", error) from error

    def _feed(self, batch: EncodedBatch) -> None:
        """Feeds a batch to the pipelines, and lets them go on."""
        parts = batch.split(len(self._pipelines))
        for pipeline, part in zip(self._pipelines, parts, strict=True):
            feed(pipeline, self._transform, part)
        self._fed += 1
        # The first time, a pipeline begins with as many batches as it has under way at once.
        if self._fed >= self.depth:
            for pipeline in self._pipelines:
                pipeline.schedule_run()

    def _without_refused(self, step: int, batch: EncodedBatch) -> EncodedBatch:
        """Lets the host decode the images that DALI is known to refuse."""
        for row, index in enumerate(batch.columns["index"].tolist()):
            if index in self._refused:
                batch = batch.with_row(row, self._load_row(step, row, self._refused))
        return batch

    def _begin_anew(self, error: Exception) -> None:
        """Lets the host decode the images that DALI fails on, and begins anew with the others.

        Raises:
          LoaderError: If it is not an image that DALI fails on, or too many.
        """
        while True:
            self._refuse(self._find_refused(), error)
            self._pending = collections.deque(
                (step, self._without_refused(step, batch)) for step, batch in self._pending
            )
            self._start(len(self._pending))
            try:
                for _, batch in self._pending:
                    self._feed(batch)
            except _FAILURES as next_error:
                error = next_error
            else:
                return

    def _find_refused(self) -> set[int]:
        """Returns the indices of the images on which DALI fails, of all that are under way."""
        refused = set()
        pipeline = None
        for _, batch in self._pending:
            for image in batch.split(len(batch.columns["index"])):
                pipeline = pipeline or self._build(self._devices[0], rows=1, depth=1)
                try:
                    feed(pipeline, self._transform, image)
                    pipeline.schedule_run()
                    pipeline.outputs()
                except _FAILURES:
                    refused.add(int(image.columns["index"][0]))
                    pipeline = None  # It can decode nothing more.
        return refused

    def _refuse(self, refused: set[int], error: Exception) -> None:
        """Remembers and names images that DALI refuses; raises if they do not explain an error."""
        names = sorted(self._describe(index) for index in refused - self._refused)
        if not names:
            raise _failed("DALI cannot decode a batch", error) from error
        self._refused |= refused
        if len(self._refused) > _MOST_REFUSED:
            what = f"DALI cannot decode {len(self._refused)} images, such as {names[0]}"
            raise _failed(what, error) from error
        for name in names:
            console.warn(f"DALI cannot decode {name}: the host does")


def _failed(what: str, error: Exception) -> LoaderError:
    """Makes one line of an error of DALI's, whose last lines say what went wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and "pipeline object is no longer" not in line]
    reason = one_line(" ".join(told[-2:]) or error, 300)
    return LoaderError(f"{what}: {reason}; data.loader=host trains without DALI")
