"""Makes arrays in memory that is used again once nobody refers to the array any more.

Fresh memory of the size of a batch comes from the operating system, which clears it first. The
transfer to a device, and JAX on a CPU, which may read NumPy's memory instead of a copy, hold the
array itself, so nothing can be overwritten that is still read.
"""

import math
import mmap
import weakref

import numpy as np
from numpy.typing import DTypeLike


class ReusedMemory:
    """Makes arrays; keeps as much memory as the most of them that were alive at a time."""

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}  # by the number of bytes

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return ReusedMemory, ()  # another process has memory of its own

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Returns a new array, which is not filled, as `numpy.empty` does."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free.setdefault(size, [])
        try:
            memory = free.pop()
        except IndexError:
            memory = mmap.mmap(-1, size)
        # Views refer to this array, because what it is made of is no array.
        array: np.ndarray = np.ndarray(shape, dtype, buffer=memory)
        weakref.finalize(array, free.append, memory).atexit = False
        return array
