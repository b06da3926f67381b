"""Chunks of a batch that threads of one process load, and the stream of random choices."""

import io
import pickle

import jax
import numpy as np
from PIL import Image

from noah_jax.data.batches import train_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.reused_memory import ReusedMemory
from noah_jax.data.sampler import Sampler, image_random
from noah_jax.data.transforms import TrainTransform


class _Images:
    """A source whose image i is filled with i and has the class index i."""

    multi_label = False
    name = "made"

    def __init__(self, length: int, side: int):
        self.class_names = [str(i) for i in range(length)]
        self._files = []
        for i in range(length):
            out = io.BytesIO()
            Image.new("RGB", (side, side), (i,) * 3).save(out, "BMP")
            self._files.append(out.getvalue())

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        return self._files[index], index

    def describe(self, index):
        return f"image {index}"


def _batches(source, put=lambda batch: batch, *, batch_size, steps, **options):
    return train_batches(
        DecodedSource(source),
        TrainTransform("none", (16, 16)),
        Sampler(5, len(source), batch_size),
        start_step=0,
        total_steps=steps,
        num_threads=2,
        put=put,
        corrupt_images=CorruptImages("stop", print),
        **options,
    )


def test_chunks_fill_one_array():
    source = _Images(90, 16)
    batches = list(_batches(source, batch_size=80, steps=6))
    for batch in batches:
        # 80 rows are three chunks; nothing was copied to join them.
        assert batch["image"].flags.c_contiguous and batch["label"].base is None
        np.testing.assert_array_equal(batch["image"].min((1, 2, 3)), batch["label"])
        np.testing.assert_array_equal(batch["image"].max((1, 2, 3)), batch["label"])
    assert len({batch["image"].ctypes.data for batch in batches}) == len(batches)
    seen = np.concatenate([batch["label"] for batch in batches])
    for epoch in range(5):
        assert sorted(seen[90 * epoch : 90 * epoch + 90]) == list(range(90))


def test_the_stream_of_an_image_is_philox_with_key_and_counter():
    philox = np.random.Philox(
        key=np.array((3, 1), np.uint64), counter=np.array((0, 8, 2, 0), np.uint64)
    )
    expected = np.random.Generator(philox)
    actual = image_random(3, 1, 7, 2)
    np.testing.assert_array_equal(actual.random(9), expected.random(9))
    assert [actual.integers(1000) for _ in range(5)] == [expected.integers(1000) for _ in range(5)]
    assert (image_random(3, 2, 7, 2).random(9) != image_random(3, 1, 7, 2).random(9)).all()


def test_memory_is_used_again_once_nobody_refers_to_it():
    memory = ReusedMemory()
    array = memory.empty((4, 5), np.uint8)
    address, row = array.ctypes.data, array[2]
    del array
    other = memory.empty((4, 5), np.uint8)  # a view still refers to the first
    assert other.ctypes.data != address
    del row
    assert memory.empty((4, 5), np.uint8).ctypes.data == address
    assert memory.empty((2, 5), np.uint16).shape == (2, 5)
    assert pickle.loads(pickle.dumps(memory)).empty((3,), np.int32).shape == (3,)


def test_placed_batches_keep_their_pixels():
    # JAX may read the memory of the host's array for as long as the placed array lives.
    source = _Images(90, 16)
    kept = []
    for step, batch in enumerate(_batches(source, jax.device_put, batch_size=64, steps=24)):
        kept = [*kept[-3:], batch]
        for old in kept if step % 4 == 3 else ():
            image, label = np.asarray(old["image"]), np.asarray(old["label"])
            np.testing.assert_array_equal(image.min((1, 2, 3)), label)
            np.testing.assert_array_equal(image.max((1, 2, 3)), label)
