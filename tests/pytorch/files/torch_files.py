"""Writes state dicts to files as the training programs do, without PyTorch."""

import pathlib
import zipfile

import jax
import numpy as np
from safetensors.numpy import save_file

from noah_jax.models import create_model, get_family
from noah_jax.models.base import Model
from noah_jax.pytorch.golden import golden_state_dict
from noah_jax.pytorch.mapping import expected_shapes
from tests.pytorch.files import torch_bytes as tb

_KINDS = {"float32": "FloatStorage", "int64": "LongStorage", "float64": "DoubleStorage"}


def golden_state(name: str, **arguments) -> dict[str, np.ndarray]:
    """The golden weights of a model, BatchNorm's counters included, by the original's keys."""
    params, stats = create_model(name, **arguments).abstract()
    table = get_family(name).table
    shapes = dict(expected_shapes({"params": params, "stats": stats}, table))
    for key in [key for key in shapes if key.endswith("running_mean")]:
        shapes[key.replace("running_mean", "num_batches_tracked")] = ()
    return golden_state_dict(shapes)


def shape_only_state(model: Model) -> dict[str, np.ndarray]:
    """A model's state dict that takes no memory, without BatchNorm's counters."""
    params, stats = model.abstract()
    table = get_family(model.name).table
    return empty_state(expected_shapes({"params": params, "stats": stats}, table))


def assert_same_model(found, expected):
    """Checks that names, weights and the expected arguments are equal; it may have others."""
    assert found.name == expected.name
    assert found.arguments | expected.arguments == found.arguments
    assert found.abstract() == expected.abstract()


def empty_state(shapes: dict) -> dict[str, np.ndarray]:
    """Tensors that take no memory."""
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


class _Writer:
    """Puts tensors into records of an archive, and makes the pickle that refers to them."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        self._count = 0

    def tensor(self, x: np.ndarray) -> bytes:
        record = str(self._count)
        self._count += 1
        self._archive.writestr(f"archive/data/{record}", np.ascontiguousarray(x).data)
        strides = np.empty(x.shape, np.int8).strides  # in elements
        where = tb.storage(record, x.size, _KINDS[x.dtype.name])
        return tb.tensor(x.shape, strides, where=where)

    def state(self, state: dict[str, np.ndarray], prefix: str = "") -> bytes:
        items = [tb.text(prefix + key) + self.tensor(value) for key, value in state.items()]
        return b"}(" + b"".join(items) + b"u"


def _args(name: str) -> bytes:
    return tb.name("argparse", "Namespace") + b")\x81" + tb.dictionary(model=tb.text(name)) + b"b"


# format -> the pickle of a file with the state dict `s` of the model `name`, by the writer `w`.
# A moving average, if the format has one, is half the state dict.
WRAPPERS = {
    "bare": lambda w, s, name: w.state(s),
    "cnn": lambda w, s, name: tb.dictionary(
        epoch=tb.number(3), state_dict=w.state(s, "module."), best_acc=tb.number(71)
    ),
    "deit": lambda w, s, name: tb.dictionary(
        model=w.state(s), model_ema=w.state(_half(s)), epoch=tb.number(3), args=_args(name)
    ),
    "pvt": lambda w, s, name: tb.dictionary(
        model=w.state(s), optimizer=b"}", epoch=tb.number(3), args=_args(name)
    ),
    "timm": lambda w, s, name: tb.dictionary(
        epoch=tb.number(3),
        arch=tb.text(name),
        state_dict=w.state(s),
        state_dict_ema=w.state(_half(s), "module."),
        args=_args(name),
    ),
    "compiled": lambda w, s, name: tb.dictionary(model=w.state(s, "module._orig_mod.")),
}
FORMATS = [*WRAPPERS, "safetensors"]
WITH_EMA = ("deit", "timm")
WITH_NAME = ("deit", "pvt", "timm")


def _half(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return jax.tree.map(lambda x: np.asarray(x / 2, x.dtype), state)


def write(path: pathlib.Path, state: dict[str, np.ndarray], kind: str, name: str) -> pathlib.Path:
    """Writes a file of one of `FORMATS`; `name` is what the file calls its model."""
    if kind == "safetensors":
        save_file(state, path)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        pickle = WRAPPERS[kind](_Writer(archive), state, name)
        archive.writestr("archive/data.pkl", tb.pickled(pickle))
        archive.writestr("archive/byteorder", b"little")
    return path
