"""Builds the data side of a run from the `data` section of the configuration.

Each function takes that section, see `noah_jax.config`, and what else it needs as values.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from noah_jax.data.batches import check_readers
from noah_jax.data.geometry import RANDOM_INTERPOLATION
from noah_jax.data.interpolation import SQUASH
from noah_jax.data.randaugment import RandAugment, mean_color
from noah_jax.data.sampler import Sampler
from noah_jax.data.source import ImageFiles, Source, check_label
from noah_jax.data.sources import open_sources
from noah_jax.data.split import FolderSplit
from noah_jax.data.streaming.cache import ShardCache
from noah_jax.data.streaming.sets import shard_set
from noah_jax.data.transforms import EvalTransform, TrainTransform, make_eval_transform
from noah_jax.data.window_choice import make_windows
from noah_jax.errors import InputError, UnlabelledImageError

DALI = "dali"  # the value of `data.loader`

_LOOKED_AT = 16  # images of a split whose labels are looked at before the training


def open_data(
    dataset: str, section: ConfigDict, remembered: FolderSplit | None = None
) -> tuple[Source, Source]:
    """Opens the training and the evaluation images.

    Args:
      dataset: Name of the dataset, see `noah_jax.data.sources.open_sources`.
      section: The section `data`: `dir`, `train_split`, `eval_split`, `num_threads`,
        `num_workers`, `eval_fraction`, `cache_dir`.
      remembered: The split of a folder that the run remembers from its first start.

    Raises:
      InputError: If there is no such dataset or split, a split has no labels, or a number is out
        of its range.
    """
    check_readers(num_threads=section.num_threads, num_workers=section.num_workers)
    sources = open_sources(
        dataset,
        data_dir=section.dir,
        train_split=section.train_split,
        eval_split=section.eval_split,
        eval_fraction=section.eval_fraction,
        remembered=remembered,
        cache=ShardCache(section.cache_dir, section.cache_gb),
    )
    for source, key in zip(sources, ("data.train_split", "data.eval_split"), strict=True):
        _check_labelled(source, key)
    return sources


def _check_labelled(source: Source, key: str) -> None:
    """Raises at once if a split has no labels, as the test splits of many TFDS datasets.

    Single images without a label are found when they are read; here only a few are looked at.
    """
    if isinstance(source, ImageFiles):
        return  # their labels are their folders or stand in a table
    shards = shard_set(source)
    # In a bucket, images of one shard are enough to download.
    length = shards.lengths[0] if shards is not None and shards.remote else len(source)
    indices = sorted({length * i // _LOOKED_AT for i in range(_LOOKED_AT)})
    unlabelled = []
    for index in indices:
        try:
            label = source[index][1]
            if not source.multi_label:
                check_label(source.describe(index), int(label), len(source.class_names))
        except UnlabelledImageError as error:
            unlabelled.append(error)
    if indices and len(unlabelled) == len(indices):
        raise InputError(
            f"{source.name} seems to have no labels: none of {len(indices)} of its {len(source):,}"
            f" images has one, such as {unlabelled[0].name} ({unlabelled[0].reason}); choose"
            f" another {key}"
        )


def make_transforms(
    section: ConfigDict, *, image_size: tuple[int, int], mean: Sequence[float]
) -> tuple[TrainTransform, EvalTransform]:
    """Makes the training and the evaluation transform.

    Args:
      section: The section `data`.
      image_size: `(height, width)` of the model's images in pixels.
      mean: Mean of the pixels in 0..1, for the fill of RandAugment; `section.mean` goes before.

    Raises:
      InputError: If a value is unknown or out of its range; the message names its key.
    """
    eval_interpolation = section.eval_interpolation or section.interpolation
    if eval_interpolation == RANDOM_INTERPOLATION:
        raise InputError("data.interpolation=random needs data.eval_interpolation, such as bicubic")
    if section.squash and section.eval_resize is not None:
        raise InputError(
            f"data.eval_resize={section.eval_resize} does not go with data.squash=True, which"
            " resizes whole images"
        )
    if section.loader == DALI:
        _check_dali(section)
    augment = section.rand_augment
    train_transform = TrainTransform(
        section.crop,
        image_size,
        squash=section.squash,
        pad=section.pad,
        area=tuple(section.area),
        ratio=tuple(section.ratio),
        interpolation=section.interpolation,
        flip=section.flip,
        color_jitter=section.color_jitter,
        rand_augment=RandAugment(**augment) if augment.num_ops else None,
        fill=mean_color(section.mean or mean),
        on_device=section.augment_on_device or section.loader == DALI,
        approximate=section.approximate_decode,
    )
    eval_transform = make_eval_transform(
        image_size,
        resize=SQUASH if section.squash else section.eval_resize,
        interpolation=eval_interpolation,
    )
    return train_transform, eval_transform


def _check_dali(section: ConfigDict) -> None:
    """Raises an InputError if keys are set that tell the host's decoder what to do."""
    for key in ("cache", "approximate_decode"):
        if section[key]:
            raise InputError(
                f"data.{key}=True is about images that the host decodes, and data.loader=dali"
                f" decodes them: set data.{key}=False or data.loader=host"
            )


def make_sampler(
    section: ConfigDict, source: Source, *, seed: int, batch_size: int, mix_group: int | None
) -> Sampler:
    """Makes the sampler of the training images.

    Args:
      section: The section `data`: `repeats`, `drop_last`, `shuffle_window`.
      source: The training images.
      seed: Seed of the order and of the random choices.
      batch_size: Images per step over all hosts.
      mix_group: Images that share one draw of mixup or CutMix; `None` for the whole batch.

    Raises:
      InputError: If `data.repeats` is less than 1.
    """
    return Sampler(
        seed,
        len(source),
        batch_size,
        repeats=section.repeats,
        mix_groups=batch_size // (mix_group or batch_size),
        drop_last=section.drop_last,
        windows=make_windows(section.shuffle_window, source),
    )
