"""DALI in the input benchmark: by itself, as its users write it, and as `data.loader=dali`.

Both decode on NVIDIA GPUs where JAX finds them, otherwise on DALI's CPU backend.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from noah_jax import distributed
from noah_jax.benchmark.input_contenders import DEIT, ENDLESS, Contenders, Setting
from noah_jax.console import say, warn
from noah_jax.data.batches import train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.dali.requirements import check_installed, decodes_on_gpu
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.sampler import Sampler
from noah_jax.data.transforms import TrainTransform
from noah_jax.errors import InputError, MissingPackageError

_COMPARED = 128  # images whose pixels are compared with the host's


def dali_contenders(setting: Setting) -> Contenders:
    """Returns DALI's own pipeline and `data.loader=dali`; none if DALI is not there."""
    try:
        check_installed()
        place = "GPU" if decodes_on_gpu(jax.local_devices()) else "CPU"
    except (MissingPackageError, InputError):
        say("NVIDIA DALI is not installed, or not for this machine: it is left out")
        return {}
    transform = dataclasses.replace(setting.recipe.transform, on_device=True)
    _say_difference(setting, transform)
    name = f"noah_jax, loader=dali ({place})"
    contenders = {name: _own_batches(setting, transform, ENDLESS)}
    if setting.recipe is not DEIT:  # Its RandAugment is no operator of DALI's.
        contenders[f"DALI, {place}"] = _plain_batches(setting, gpu=place == "GPU")
    return contenders


def _own_batches(setting: Setting, transform: TrainTransform, steps: int) -> Iterator[Any]:
    from noah_jax.data.dali import loader  # needs DALI

    devices = jax.local_devices()
    if setting.batch % len(devices):
        devices = devices[:1]
    return loader.train_batches(
        DecodedSource(setting.source),
        transform,
        Sampler(0, len(setting.source), setting.batch),
        start_step=0,
        total_steps=steps,
        num_threads=setting.cores,
        mesh=distributed.make_mesh(devices),
        put=lambda batch: batch,
        corrupt_images=CorruptImages("stop", tell=warn),
    )


def _say_difference(setting: Setting, transform: TrainTransform) -> None:
    """Says by how much DALI's pixels differ from the host's, before RandAugment."""
    small = dataclasses.replace(setting, batch=_COMPARED)
    (got,) = _own_batches(small, transform, 1)
    (expected,) = train_batches(
        DecodedSource(small.source),
        transform,
        Sampler(0, len(small.source), small.batch),
        start_step=0,
        total_steps=1,
        num_threads=small.cores,
        put=lambda batch: batch,
        corrupt_images=CorruptImages("stop", tell=warn),
    )
    difference = np.abs(np.asarray(got["image"]).astype(np.int16) - expected["image"])
    say(
        f"loader=dali differs from Pillow's pixels ({transform.interpolation}) by"
        f" {difference.mean():.2f} levels of 255 in the mean,"
        f" {np.percentile(difference, 99):.0f} at the 99th percentile, {difference.max()} at most"
    )


def _plain_batches(setting: Setting, *, gpu: bool) -> Iterator[Any]:
    """Returns the batches of a pipeline as DALI's users write it for ImageNet."""
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(
        batch_size=setting.batch,
        num_threads=setting.cores,
        device_id=0 if gpu else None,
        seed=0,
    )
    height, width = setting.recipe.transform.size
    with pipeline:
        files, labels = fn.readers.file(
            file_root=str(setting.folder / "train"), random_shuffle=True, initial_fill=1024
        )
        images = fn.decoders.image_random_crop(
            files,
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            random_area=list(setting.recipe.transform.area),
            random_aspect_ratio=list(setting.recipe.transform.ratio),
        )
        images = fn.resize(images, size=(height, width))
        images = fn.flip(images, horizontal=fn.random.coin_flip())
        pipeline.set_outputs(images, labels)
    pipeline.build()
    while True:
        yield pipeline.run()
