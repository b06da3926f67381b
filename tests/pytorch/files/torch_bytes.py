"""Makes pickles and archives as torch.save does, by hand so that they can be wrong."""

import pathlib
import struct
import zipfile

PROTO = b"\x80\x02"
STOP = b"."
NONE = b"N"
MARK = b"("


def name(module: str, attribute: str) -> bytes:
    """The opcode that names a global."""
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def numbers(values: tuple) -> bytes:
    return tup(*map(number, values))


def tup(*items: bytes) -> bytes:
    return MARK + b"".join(items) + b"t"


def dictionary(**items: bytes) -> bytes:
    return b"}" + MARK + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(function: bytes, *args: bytes) -> bytes:
    return function + tup(*args) + b"R"


def storage(key: str = "0", numel: int = 6, kind: str = "FloatStorage") -> bytes:
    cls = name("torch", kind)
    return tup(text("storage"), cls, text(key), text("cpu"), number(numel)) + b"Q"


def tensor(
    shape: tuple = (2, 3), strides: tuple = (3, 1), offset: int = 0, where: bytes | None = None
) -> bytes:
    """A tensor in a storage, by default in record 0 with six float32."""
    args = [where or storage(), number(offset), numbers(shape), numbers(strides), b"\x89"]
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), *args, hooks)


def pickled(value: bytes) -> bytes:
    return PROTO + value + STOP


SIX_FLOATS = struct.pack("<6f", *range(6))


def write(
    path: pathlib.Path,
    value: bytes | None = None,
    records: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> pathlib.Path:
    """An archive of `{"weight": value}` (a tensor of [2, 3] by default) and these records."""
    data = pickled(dictionary(weight=value or tensor()))
    records = {"data.pkl": data, "byteorder": b"little", "data/0": SIX_FLOATS, **(records or {})}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for record, content in records.items():
            archive.writestr(f"archive/{record}", content)
    return path
