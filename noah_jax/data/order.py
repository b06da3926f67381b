"""The order of the training images: a pure function of seed, epoch and position.

Nothing is carried from one step to the next, so a run that resumes at any step, on any
number of hosts, sees what the uninterrupted run saw.
"""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of one epoch: every index below `length` once.

    Sorts raw Philox words, whose stream NumPy keeps fixed (`Generator.permutation` may
    change between NumPy's versions). A third of a second for ImageNet's 1.28 M images.
    """
    words = _philox(seed, epoch, 0).random_raw(length)
    return np.argsort(words, kind="stable")


def index_at(seed: int, position: int, length: int) -> tuple[int, int]:
    """`(epoch, index)` of the image at a position of the endless training stream."""
    epoch, offset = divmod(position, length)
    return epoch, int(permutation(seed, epoch, length)[offset])


def image_random(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The source of one image's random choices in one epoch."""
    return np.random.Generator(_philox(seed, epoch, index + 1))


def _philox(seed: int, epoch: int, stream: int) -> np.random.Philox:
    # The key holds what stays, the counter what moves: no two streams overlap before 2**64
    # blocks.
    key = np.array((seed, epoch), np.uint64)
    return np.random.Philox(key=key, counter=np.array((0, stream, 0, 0), np.uint64))
