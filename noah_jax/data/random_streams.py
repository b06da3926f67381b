"""Streams of random words that depend on nothing but numbers, on any machine."""

import numpy as np


def philox(
    seed: int, epoch: int, stream: int = 0, copy: int = 0, *, purpose: int = 0
) -> np.random.Philox:
    """Returns a stream of random words, a different one for all different arguments.

    Philox increments the first word of the counter. The other words and the key differ for each
    stream, so two streams overlap only after 2**64 blocks.

    Args:
      seed: Seed of the run.
      epoch: Epoch.
      stream: 0, or 1 and the index of an image.
      copy: Number of the image's copy in the epoch.
      purpose: What else the words are for.
    """
    key = np.array((seed, epoch), np.uint64)
    return np.random.Philox(key=key, counter=np.array((0, stream, copy, purpose), np.uint64))
