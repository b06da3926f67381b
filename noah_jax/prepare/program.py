"""Does the work of `python -m noah_jax.prepare` once its command line is parsed."""

from collections.abc import Sequence

import tensorflow_datasets as tfds

from noah_jax.console import working
from noah_jax.data.imagenet import NAME, imagenet_metadata, plan_imagenet_folders, plan_tars
from noah_jax.data.prepare import plan_folders, prepare
from noah_jax.data.prepare_labelled import plan_coco, plan_voc
from noah_jax.data.tfrecord import plan_conversion
from noah_jax.interrupts import advising


def prepare_dataset(
    *,
    tar: Sequence[str] | None = None,
    folder: str | None = None,
    from_tfrecord: str | None = None,
    coco: str | None = None,
    voc: str | None = None,
    year: str | None = None,
    name: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Prepares a dataset from exactly one of `tar`, `folder`, `from_tfrecord`, `coco` and `voc`.

    Args:
      tar: ImageNet's two tar files, the training images first.
      folder: A folder with class folders.
      from_tfrecord: The folder of a dataset that TFDS prepared in TFRecord format.
      coco: COCO's folder, see `noah_jax.data.prepare_labelled.plan_coco`.
      voc: PASCAL VOC's folder, see `noah_jax.data.prepare_labelled.plan_voc`.
      year: The year of `coco`'s annotations, if there are several.
      name: Name of the dataset made of `folder`, by default imagenet2012, or of `coco` or `voc`,
        by default that and the year.
      data_dir: The folder for datasets; by default TFDS's own.

    Raises:
      InputError: If the data do not fit, or something else is in the dataset's place.
      WriteError: If the disk is full or cannot be written.
    """
    with advising("the same command goes on from here"):
        with working("listing the images"):
            if tar is not None:
                train_tar, val_tar = tar
                info, splits = plan_tars(train_tar, val_tar, imagenet_metadata())
            elif from_tfrecord is not None:
                info, splits = plan_conversion(from_tfrecord)
            elif coco is not None:
                info, splits = plan_coco(coco, name=name, year=year)
            elif voc is not None:
                info, splits = plan_voc(voc, name=name)
            elif folder is None:
                raise ValueError("one of tar, folder, from_tfrecord, coco and voc is needed")
            elif name in (None, NAME):
                info, splits = plan_imagenet_folders(folder, imagenet_metadata())
            else:
                info, splits = plan_folders(folder, name)
        prepare(info, splits, data_dir or str(tfds.core.constants.DATA_DIR))
