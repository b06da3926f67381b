"""Keeps shards of buckets, and what was learnt of shards, in a folder of this machine."""

import os

from noah_jax.paths import expand_home

DEFAULT_FOLDER = "~/.cache/noah_jax/shards"


class ShardCache:
    """A folder for shards and their indices, which the processes of a machine share.

    Args:
      folder: The folder.
    """

    def __init__(self, folder: str | None = None):
        self.folder = os.path.abspath(expand_home(folder or DEFAULT_FOLDER))

    def index_file(self, identity: str) -> str:
        """Returns where the index of a shard is kept.

        Args:
          identity: See `Shard.identity`.
        """
        return os.path.join(self.folder, "index", identity[:2], f"{identity}.npz")
