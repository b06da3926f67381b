"""Reads single records of ArrayRecord files that may be in a bucket."""

from collections.abc import Sequence

from array_record.python.array_record_module import ArrayRecordReader

from noah_jax.data.streaming.cache import LocalShard, ShardCache
from noah_jax.data.streaming.sets import ShardSet
from noah_jax.data.streaming.shards import Shard
from noah_jax.errors import ReadError, one_line


class ArrayRecordShard:
    """The records of one file on this machine.

    Args:
      local: The file.
    """

    def __init__(self, local: LocalShard):
        self._local = local  # which nobody removes while this object is there
        # The options of `array_record_data_source`, for random access.
        self._reader = ArrayRecordReader(
            local.path, options="readahead_buffer_size:0", file_reader_buffer_size=32768
        )

    def __getitem__(self, position: int) -> bytes:
        """Returns a record.

        Raises:
          ReadError: If the file is no ArrayRecord file, or is corrupt.
        """
        try:
            return self._reader.read([position])[0]
        except Exception as error:  # its errors have no class of their own
            raise ReadError(
                f"{self._local.path} cannot be read: {one_line(error, 200)}; write the shard again"
            ) from error


class ArrayRecords:
    """The records of a split, as TFDS's data sources take them.

    Args:
      shards: The files.
      lengths: Number of records in each.
      cache: Keeps the files of buckets.
    """

    def __init__(self, shards: Sequence[Shard], lengths: Sequence[int], cache: ShardCache):
        self.shard_set = ShardSet(shards, lengths, cache, ArrayRecordShard)

    def __len__(self) -> int:
        return sum(self.shard_set.lengths)

    def __getitem__(self, index: int) -> bytes:
        number, position = self.shard_set.find(index)
        return self.shard_set.reader(number)[position]
