"""Computes the features of images once, and takes them from the cache after that."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from noah_jax import console
from noah_jax.console import say, working
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.source import Label, Source
from noah_jax.errors import InputError, WriteError
from noah_jax.files import is_remote, make_folder, write_text
from noah_jax.inference.runner import Inference
from noah_jax.inference.step import make_encode_step
from noah_jax.nn.dtypes import widen
from noah_jax.paths import expand_home
from noah_jax.probe.cache import CachedArray, locked
from noah_jax.probe.encoder import Encoder

POOLED, MAP = "pooled", "map"
_LABEL = "label"
_UNUSABLE = -1  # The label of an image that cannot be decoded or has none.
_CHUNK_BYTES = 32 * 2**20


class Features(NamedTuple):
    """The features of the images of one split that can be used.

    Attributes:
      arrays: `pooled`, `[rows, channels]`, and where it was asked for `map`,
        `[rows, *spatial, channels]`; memory-mapped.
      rows: The rows that can be used, int `[images]`.
      labels: The labels of these, int32 `[images]`.
      name: Name of the split.
      class_names: Names of the classes.
    """

    arrays: dict[str, np.ndarray]
    rows: np.ndarray
    labels: np.ndarray
    name: str
    class_names: list[str]


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """Where features are kept, and how they are computed.

    Attributes:
      root: The folder of the whole cache.
      dtype: Name of the dtype in which features are stored.
      batch_size: Images that the backbone encodes at a time.
      num_threads: Threads that decode; `None` is one for every core.
      chunk_bytes: About the bytes of a chunk.
    """

    root: str
    dtype: str
    batch_size: int
    num_threads: int | None = None
    chunk_bytes: int = _CHUNK_BYTES

    def load(
        self,
        encoder: Encoder,
        source: Source,
        record: dict[str, Any],
        kinds: Sequence[str],
        *,
        dry_run: bool = False,
    ) -> Features | None:
        """Returns the features of a split; computes those that are not in the cache.

        Args:
          encoder: The backbone.
          source: The images.
          record: What tells these images from others, see `noah_jax.data.record`.
          kinds: The features that are needed, `POOLED` and `MAP` or one of them.
          dry_run: Only say what would be computed, and return `None`.

        Raises:
          InputError: If the cache is remote or in use, no image can be used, or a feature does not
            fit the dtype.
          WriteError: If the disk has not enough space.
        """
        if is_remote(self.root):
            raise InputError(f"--cache {self.root} must be a local folder, to be memory-mapped")
        entry = {**encoder.record, "data": record, "dtype": self.dtype}
        text = json.dumps(entry, indent=1, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = pathlib.Path(expand_home(self.root)).absolute() / key
        arrays = self._arrays(folder, encoder, len(source), kinds)
        if dry_run:
            say(f"{source.name}: {len(source):,} images, {_sizes(arrays)} in {folder}")
            return None
        make_folder(folder)
        with locked(folder):
            write_text(folder / "features.json", text + "\n")
            self._complete(folder, arrays, encoder, source)
        labels = np.array(arrays.pop(_LABEL).read())
        rows = np.flatnonzero(labels != _UNUSABLE)
        if not len(rows):
            raise InputError(f"none of the {len(source):,} images of {source.name} can be used")
        if len(rows) < len(labels):
            console.warn(f"{source.name}: {len(labels) - len(rows):,} images are left out")
        read = {name: array.read() for name, array in arrays.items()}
        return Features(read, rows, labels[rows], source.name, source.class_names)

    def _arrays(
        self, folder: pathlib.Path, encoder: Encoder, images: int, kinds: Sequence[str]
    ) -> dict[str, CachedArray]:
        one = jax.ShapeDtypeStruct((1, *encoder.trained.preprocessing.size, 3), jnp.uint8)
        model, params, stats = encoder.trained.model, encoder.trained.params, encoder.trained.stats
        feature_map, _ = jax.eval_shape(model.encode, params, stats, one)
        shapes = {POOLED: feature_map.shape[-1:], MAP: feature_map.shape[1:]}
        # The chunks of all arrays have the same rows, whichever of them are asked for.
        row_bytes = feature_map.size * jnp.dtype(self.dtype).itemsize
        chunk_rows = max(1, self.chunk_bytes // row_bytes)
        arrays = {
            kind: CachedArray(folder, kind, (images, *shapes[kind]), self.dtype, chunk_rows)
            for kind in kinds
        }
        arrays[_LABEL] = CachedArray(folder, _LABEL, (images,), np.int32, chunk_rows)
        return arrays

    def _complete(
        self,
        folder: pathlib.Path,
        arrays: dict[str, CachedArray],
        encoder: Encoder,
        source: Source,
    ) -> None:
        """Computes the chunks that are missing or corrupt."""
        todo = {name: set(array.missing()) for name, array in arrays.items()}
        known = sum(array.num_chunks - len(todo[name]) for name, array in arrays.items())
        with working(f"checking the features of {source.name}"):
            for name, array in arrays.items():
                if corrupt := array.corrupt():
                    console.warn(
                        f"{folder / name}.bin: {len(corrupt)} of {array.num_chunks} chunks are"
                        " corrupt (their SHA-256 differs) and are computed again"
                    )
                    todo[name].update(corrupt)
        chunks = sorted(set().union(*todo.values()))
        if not chunks:
            say(f"{source.name}: {len(source):,} images, {_sizes(arrays)} from the cache {folder}")
            return
        going_on = " (some are there already)" if known else ""
        say(f"{source.name}: {len(source):,} images, {_sizes(arrays)} into {folder}{going_on}")
        _check_space(folder, arrays, todo)
        label = arrays[_LABEL]
        rows = np.concatenate([np.array(label.rows(chunk)) for chunk in chunks])
        corrupt_images = CorruptImages("replace", tell=console.warn)
        inference = Inference(
            encoder.trained.model,
            encoder.trained.preprocessing,
            _values(list(arrays), self.dtype),
            make_forward=make_encode_step,
            batch_size=min(self.batch_size, len(rows)),
        )
        batches = inference.run(
            encoder.trained,
            DecodedSource(_SomeImages(source, rows)),
            corrupt_images=corrupt_images,
            num_threads=self.num_threads,
        )
        writer = _ChunkWriter(arrays, todo, chunks)
        with working(f"encoding {source.name}", len(rows)) as work:
            for index, values in batches:
                _check_finite(values, self.dtype)
                writer.add(index, values)
                work.advance(len(index))
            writer.finish()


class _SomeImages:
    """Some images of a source; see `noah_jax.data.source.Source`."""

    def __init__(self, source: Source, rows: np.ndarray):
        self._source = source
        self._rows = rows
        self.name = source.name
        self.class_names = source.class_names
        self.multi_label = source.multi_label

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[bytes, Label]:
        return self._source[int(self._rows[index])]

    def describe(self, index: int) -> str:
        return self._source.describe(int(self._rows[index]))

    def file_name(self, index: int) -> str:
        return self._source.file_name(int(self._rows[index]))


class _ChunkWriter:
    """Collects the rows of one chunk after another, and writes each that is complete.

    Args:
      arrays: The arrays.
      todo: The chunks that are to be written, for each array.
      chunks: The chunks whose rows come, in order.
    """

    def __init__(
        self, arrays: dict[str, CachedArray], todo: dict[str, set[int]], chunks: list[int]
    ):
        self._arrays = arrays
        self._todo = todo
        self._chunks = chunks
        lengths = [len(arrays[_LABEL].rows(chunk)) for chunk in chunks]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._current = 0
        self._buffers = self._empty()

    def add(self, index: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Takes the values of rows, counted over all chunks; rows that never come are unusable."""
        while len(index):
            start, end = self._starts[self._current : self._current + 2]
            inside = index < end
            for name, buffer in self._buffers.items():
                buffer[index[inside] - start] = values[name][inside]
            if inside.all():
                return
            self._write()
            index = index[~inside]
            values = {name: value[~inside] for name, value in values.items()}

    def finish(self) -> None:
        """Writes the rest."""
        while self._current < len(self._chunks):
            self._write()

    def _empty(self) -> dict[str, np.ndarray]:
        rows = int(np.diff(self._starts)[self._current])
        empty = {
            name: np.zeros((rows, *array.shape[1:]), array.dtype)
            for name, array in self._arrays.items()
        }
        empty[_LABEL][:] = _UNUSABLE
        return empty

    def _write(self) -> None:
        chunk = self._chunks[self._current]
        for name, array in self._arrays.items():
            if chunk in self._todo[name]:
                array.write(chunk, self._buffers[name])
        self._current += 1
        if self._current < len(self._chunks):
            self._buffers = self._empty()


def _values(
    names: list[str], dtype: str
) -> Callable[[tuple[jax.Array, jax.Array | None], jax.Array], dict[str, jax.Array]]:
    """Makes the function from what the backbone gives to the values that are stored."""

    def compute(
        encoded: tuple[jax.Array, jax.Array | None], labels: jax.Array
    ) -> dict[str, jax.Array]:
        feature_map, token = encoded
        positions = tuple(range(1, feature_map.ndim - 1))
        pooled = widen(feature_map).mean(positions) if token is None else token
        values = {POOLED: pooled.astype(dtype), MAP: feature_map.astype(dtype), _LABEL: labels}
        return {name: values[name] for name in names}

    return compute


def _check_finite(values: dict[str, np.ndarray], dtype: str) -> None:
    for name, value in values.items():
        if name != _LABEL and not np.isfinite(value).all():
            raise InputError(
                f"a feature is not finite in {dtype}, whose numbers end at"
                f" {float(jnp.finfo(dtype).max):,.0f}; choose another --cache-dtype, or check the"
                " backbone's weights"
            )


def _check_space(
    folder: pathlib.Path, arrays: dict[str, CachedArray], todo: dict[str, set[int]]
) -> None:
    needed = sum(
        array.nbytes * len(todo[name]) // max(array.num_chunks, 1) for name, array in arrays.items()
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WriteError(
            f"{folder} needs {_bytes(needed)}, and {_bytes(free)} are free there; free space or"
            " choose another --cache"
        )


def _sizes(arrays: dict[str, CachedArray]) -> str:
    """Says what is stored: the shapes of an image's features and the bytes of all."""
    parts = [
        f"{name} {'x'.join(map(str, array.shape[1:]))}"
        for name, array in arrays.items()
        if name != _LABEL
    ]
    dtype = next(array.dtype for name, array in arrays.items() if name != _LABEL)
    rounding = 100 * float(jnp.finfo(dtype).eps) / 2
    exact = "" if dtype == np.float32 else f", rounded by at most {rounding:.2g} %"
    size = _bytes(sum(array.nbytes for array in arrays.values()))
    return f"{' and '.join(parts)} in {dtype.name}{exact}: {size}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{max(count, 1) / 1000:,.1f} kB"
