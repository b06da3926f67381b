"""Builds DALI's graph: decode the box that was drawn, resize it, crop, flip.

The decoder cuts the box out of what it decodes, so that no pixel outside of it is read, as on the
host. DALI's triangular and Catmull-Rom filters, widened where an image shrinks, are Pillow's
bilinear and bicubic ones.
"""

import numpy as np
from nvidia.dali import Pipeline, fn, types

from noah_jax.data.dali.encoded import EncodedBatch
from noah_jax.data.geometry import RANDOM_INTERPOLATION
from noah_jax.data.transforms import TrainTransform

_INTERPOLATIONS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
# A share between 0 and 1 would leave it to the threads' timing which images the hardware decodes
# and which the cores of the GPU, whose pixels may differ; a resumed run would not be exact. All
# that the hardware cannot decode go to the cores of the GPU, and then to the CPU.
_HARDWARE_SHARE = 1.0


def build_pipeline(
    transform: TrainTransform, *, rows: int, num_threads: int, gpu: int | None, depth: int
) -> Pipeline:
    """Builds the pipeline of one device.

    Args:
      transform: The training transform; colour jitter and RandAugment are not done here.
      rows: Images of a batch.
      num_threads: Number of DALI's threads on the CPU.
      gpu: The CUDA device that decodes; `None` for DALI's CPU backend.
      depth: Number of batches that are under way at once. So many must be fed before the first
        `schedule_run`.

    Returns:
      The pipeline, which returns uint8 `[rows, height, width, 3]`.
    """
    pipeline = Pipeline(
        batch_size=rows,
        num_threads=num_threads,
        device_id=gpu,
        seed=0,
        prefetch_queue_depth=depth,
        exec_dynamic=True,  # A batch stays as it is for as long as JAX holds it.
    )
    decoder = {
        "device": "cpu" if gpu is None else "mixed",
        "output_type": types.RGB,
        "adjust_orientation": False,  # The host ignores it too.
        "axis_names": "WH",
    }
    if gpu is not None:
        decoder["jpeg_fancy_upsampling"] = True  # as libjpeg-turbo on the host
        decoder["hw_decoder_load"] = _HARDWARE_SHARE
    with pipeline:
        # The bytes are not copied: whoever feeds them keeps them until the batch is there.
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
        corner, extent, flip = (
            fn.external_source(name=name, dtype=types.INT32, ndim=ndim)
            for name, ndim in (("corner", 1), ("extent", 1), ("flip", 0))
        )
        images = fn.decoders.image_slice(encoded, start=corner, shape=extent, **decoder)
        if transform.interpolation == RANDOM_INTERPOLATION:
            drawn = fn.external_source(name="interpolation", dtype=types.INT32, ndim=0)
            interpolation = fn.cast(drawn, dtype=types.INTERP_TYPE)
        else:
            interpolation = _INTERPOLATIONS[transform.interpolation]
        if _is_whole(transform):
            images = fn.resize(
                images, size=transform.size, interp_type=interpolation, antialias=True
            )
        else:
            resized = fn.external_source(name="resized", dtype=types.FLOAT, ndim=1)
            window = fn.external_source(name="window", dtype=types.INT32, ndim=1)
            images = fn.resize(images, size=resized, interp_type=interpolation, antialias=True)
            images = fn.slice(
                images,
                start=window,
                shape=transform.size,
                axis_names="HW",
                out_of_bounds_policy="pad",
                fill_values=0,
            )
        pipeline.set_outputs(fn.flip(images, horizontal=flip))
    pipeline.build()
    return pipeline


def feed(pipeline: Pipeline, transform: TrainTransform, batch: EncodedBatch) -> None:
    """Feeds a batch to a pipeline of `build_pipeline`; the caller keeps it until it is decoded."""
    pipeline.feed_input("encoded", batch.images())
    pipeline.feed_input("corner", batch.columns["corner"])
    pipeline.feed_input("extent", batch.columns["extent"])
    pipeline.feed_input("flip", batch.columns["flip"])
    if transform.interpolation == RANDOM_INTERPOLATION:
        codes = np.array([int(_INTERPOLATIONS[name]) for name in ("bilinear", "bicubic")], np.int32)
        pipeline.feed_input("interpolation", codes[batch.columns["bicubic"]])
    if not _is_whole(transform):
        pipeline.feed_input("resized", batch.columns["resized"])
        pipeline.feed_input("window", batch.columns["window"])


def _is_whole(transform: TrainTransform) -> bool:
    """Returns whether every image is resized to the size of the result."""
    return transform.crop == "random_resized" or (transform.squash and transform.crop == "none")
