"""Plans a dataset anew that is prepared in ArrayRecord format, to shrink its images."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from noah_jax.data.prepare import Split
from noah_jax.data.tfrecord import open_prepared
from noah_jax.errors import InputError, one_line

_AT_ONCE = 16  # records that are read in one go


def plan_prepared(folder: str) -> tuple[tfds.core.DatasetInfo, list[Split]]:
    """Plans a dataset with the records, shards and splits of one in ArrayRecord format.

    Args:
      folder: Folder of the dataset's `dataset_info.json`, `DATA_DIR/NAME/VERSION`.

    Raises:
      InputError: If there is no such dataset, or some of its shards are missing.
    """
    return open_prepared(folder, tfds.core.FileFormat.ARRAY_RECORD, _read)


def _read(path: epath.Path) -> Iterator[bytes]:
    try:
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
        try:
            for start in range(0, reader.num_records(), _AT_ONCE):
                yield from reader.read(start, min(start + _AT_ONCE, reader.num_records()))
        finally:
            reader.close()
    except RuntimeError as error:  # raised by the reader for a corrupt file
        raise InputError(f"{path} is corrupt ({one_line(error, 200)}); copy it again") from error
