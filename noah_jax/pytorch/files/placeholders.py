"""Placeholders for the objects that a file names, and their plain descriptions."""

import struct
from collections.abc import Callable
from typing import Any

# A description is for people. These bounds keep it small however the file repeats itself.
_MAX_DEPTH = 8
_MAX_VALUES = 10_000
_MAX_TEXT = 1_000

_SCALARS = (int, float, bool, type(None))


class Global:
    """A global `module.name` that a pickle refers to; it is never looked up."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Opaque:
    """Placeholder for the result of calling an unknown class or function.

    Attributes:
      name: `module.name` of the class or function.
      args: Arguments of the call.
      state: State that the object would have been restored from, mostly an instance's attributes.
      items: List elements or (key, value) pairs that the pickle added to the object.
    """

    __slots__ = ("args", "items", "name", "state")

    def __init__(self, name: str, args: tuple = ()):
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: list = []

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def attributes(self) -> dict:
        """The instance's attributes; empty if the pickle gave it none."""
        state = self.state
        if type(state) is tuple and len(state) == 2 and type(state[0]) is dict:
            state = state[0]  # state[1] has the slots
        return state if type(state) is dict else {}


def numpy_scalar(args: tuple) -> Any:
    """Returns the Python number that a pickled call of NumPy's `scalar(dtype, bytes)` gives.

    Returns `NotImplemented` if the arguments are not those of a plain number.
    """
    if len(args) != 2 or type(args[0]) is not Opaque or type(args[1]) is not bytes:
        return NotImplemented
    dtype, data = args
    state = dtype.state
    if dtype.name != "numpy.dtype" or type(state) is not tuple or len(state) < 2:
        return NotImplemented
    code = dtype.args[0] if dtype.args else None
    order = state[1]
    if type(code) is not str or code not in _NUMPY_CODES or order not in ("<", ">", "|", "="):
        return NotImplemented
    layout = ("<" if order in "|=" else order) + _NUMPY_CODES[code]
    if len(data) != struct.calcsize(layout):
        return NotImplemented
    return struct.unpack(layout, data)[0]


# NumPy's dtype code -> struct's format character.
_NUMPY_CODES = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B",
    "u2": "H", "u4": "I", "u8": "Q", "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip

# The functions of NumPy that checkpoints call, for `unpickle.loads`.
NUMPY_CALLS: dict[str, Callable[[tuple], Any]] = {
    "numpy.core.multiarray.scalar": numpy_scalar,  # NumPy 1
    "numpy._core.multiarray.scalar": numpy_scalar,  # NumPy 2
}


def plain(value: Any) -> Any:
    """Returns a value from a file as something that JSON can hold, bounded in size.

    Paths and devices become their text, namespaces become dicts of their attributes, and
    one-element tensors become numbers. A value without a plain form becomes its name in angle
    brackets.
    """
    return _PlainConverter().convert(value, 0)


class _PlainConverter:
    """Counts the values converted so far, so that `plain` can stop."""

    def __init__(self) -> None:
        self.values = 0

    def convert(self, value: Any, depth: int) -> Any:
        self.values += 1
        if type(value) in _SCALARS:
            return value if type(value) is not int or value.bit_length() <= 64 else str(value)
        if type(value) is str:
            return value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "..."
        if self.values > _MAX_VALUES or depth > _MAX_DEPTH:
            return "..."
        if type(value) in (list, tuple, set, frozenset):
            return self.sequence(value, depth)
        if type(value) is dict:
            return self.mapping(value, depth)
        if type(value) is Opaque:
            return self.opaque(value, depth)
        if getattr(value, "shape", None) in ((), (1,)):
            return value.numpy().item()
        return f"<{value.name if type(value) is Global else type(value).__name__}>"

    def sequence(self, values: Any, depth: int) -> list:
        out = []
        for value in values:
            if self.values > _MAX_VALUES:
                break
            out.append(self.convert(value, depth + 1))
        return out

    def mapping(self, values: dict, depth: int) -> dict:
        out = {}
        for key, value in values.items():
            if self.values > _MAX_VALUES:
                break
            out[str(self.convert(key, depth + 1))] = self.convert(value, depth + 1)
        return out

    def opaque(self, value: Opaque, depth: int) -> Any:
        texts = len(value.args) <= 64 and all(type(arg) in (str, int) for arg in value.args)
        if value.name.startswith("pathlib.") and texts:
            path = "/".join(str(self.convert(arg, depth)) for arg in value.args)
            return "/" + path.lstrip("/") if path.startswith("/") else path
        if value.name == "torch.device" and texts:
            return ":".join(str(self.convert(arg, depth)) for arg in value.args)
        if value.attributes:
            return self.mapping(value.attributes, depth)
        return f"<{value.name}>"
