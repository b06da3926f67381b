"""Does the work of `python -m noah_jax.prepare` once its command line is parsed."""

from collections.abc import Sequence

import tensorflow_datasets as tfds

from noah_jax.console import say, working
from noah_jax.data.imagenet import NAME, imagenet_metadata, plan_imagenet_folders, plan_tars
from noah_jax.data.prepare import plan_folders, prepare, target_folder
from noah_jax.data.prepare_estimate import check_room, estimate_splits
from noah_jax.data.prepare_labelled import plan_coco, plan_voc
from noah_jax.data.prepared import plan_prepared
from noah_jax.data.shrink import shrink_dataset
from noah_jax.data.shrunk import Shrinking
from noah_jax.data.tfrecord import plan_conversion
from noah_jax.interrupts import advising


def prepare_dataset(
    *,
    tar: Sequence[str] | None = None,
    folder: str | None = None,
    from_tfrecord: str | None = None,
    from_prepared: str | None = None,
    coco: str | None = None,
    voc: str | None = None,
    year: str | None = None,
    name: str | None = None,
    data_dir: str | None = None,
    shrinking: Shrinking | None = None,
    shrink_splits: Sequence[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Prepares a dataset from exactly one source, the first six arguments.

    Args:
      tar: ImageNet's two tar files, the training images first.
      folder: A folder with class folders.
      from_tfrecord: The folder of a dataset that TFDS prepared in TFRecord format.
      from_prepared: The folder of a dataset in ArrayRecord format; only with `shrinking`.
      coco: COCO's folder, see `noah_jax.data.prepare_labelled.plan_coco`.
      voc: PASCAL VOC's folder, see `noah_jax.data.prepare_labelled.plan_voc`.
      year: The year of `coco`'s annotations, if there are several.
      name: Name of the dataset made of `folder`, by default imagenet2012, or of `coco` or `voc`,
        by default that and the year. With `shrinking`, of any dataset; by default the original's
        with `Shrinking.suffix`.
      data_dir: The folder for datasets; by default TFDS's own.
      shrinking: What to do to the training images, if anything.
      shrink_splits: The splits to shrink, see `noah_jax.data.shrink.shrink_dataset`.
      dry_run: Only says how large the dataset will be.

    Raises:
      InputError: If the data do not fit, or something else is in the dataset's place.
      WriteError: If the disk is full or cannot be written.
    """
    data_dir = data_dir or str(tfds.core.constants.DATA_DIR)
    with advising("the same command goes on from here"):
        with working("listing the images"):
            if tar is not None:
                train_tar, val_tar = tar
                info, splits = plan_tars(train_tar, val_tar, imagenet_metadata())
            elif from_tfrecord is not None:
                info, splits = plan_conversion(from_tfrecord)
            elif from_prepared is not None:
                info, splits = plan_prepared(from_prepared)
            elif coco is not None:
                info, splits = plan_coco(coco, name=name, year=year)
            elif voc is not None:
                info, splits = plan_voc(voc, name=name)
            elif folder is None:
                raise ValueError("a source of images is needed, such as folder")
            elif name in (None, NAME):
                info, splits = plan_imagenet_folders(folder, imagenet_metadata())
            else:
                info, splits = plan_folders(folder, name)
        if shrinking is not None:
            # The name of the originals names none of the others.
            new_name = None if name == NAME else name
            info, splits = shrink_dataset(
                info, splits, shrinking, name=new_name, shrink_splits=shrink_splits
            )
        if dry_run or (shrinking is not None and not target_folder(info, data_dir).exists()):
            estimates = estimate_splits(splits)
            say(f"{info.full_name} under {data_dir}")
            for estimate in estimates:
                say(f"  {estimate.describe()}")
            if dry_run:
                return
            check_room(info, estimates, data_dir)
        prepare(info, splits, data_dir)
