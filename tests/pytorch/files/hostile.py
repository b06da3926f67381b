"""Pickles that ask for too much. As a program, reads them all under the system's limits.

    python tests/pytorch/files/hostile.py

The program prints the name of each case. It exits with 0 if each case gives a `ReadError` or an
object, within 128 MiB beyond what the program had before and within the time limit, and if none
imports a module, starts a process or opens a file.
"""

import pathlib
import resource
import struct
import sys

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.placeholders import NUMPY_CALLS, plain
from noah_jax.pytorch.files.tensors import TORCH_CALLS
from noah_jax.pytorch.files.unpickle import loads
from tests.pytorch.files.torch_bytes import MARK, NONE, call, name, number, pickled, text, tup

_SET = name("builtins", "set")
_LONG_TEXT = text("x" * 500_000)
_WATCHED = ("import", "open", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect")

# name -> (pickle, a part of the error; None if the result is a placeholder or a value).
HOSTILE: dict[str, tuple[bytes, str | None]] = {
    "bytes of 2**62": (pickled(b"\x8e" + struct.pack("<Q", 2**62)), "more byte(s) expected"),
    "bytearray of 2**40": (pickled(b"\x96" + struct.pack("<Q", 2**40)), "more byte(s) expected"),
    "text of 4 GB": (pickled(b"X\xff\xff\xff\xff"), "more byte(s) expected"),
    "text of 2**63": (pickled(b"\x8d" + struct.pack("<Q", 2**63)), "more byte(s) expected"),
    "integer of 2 GB": (pickled(b"\x8b\xff\xff\xff\x7f"), "an integer of 2147483647 bytes"),
    "negative length": (pickled(b"\x8b\xff\xff\xff\xff"), "an integer of"),
    "integer of 200 bytes": (pickled(b"\x8a\xc8" + b"\1" * 200), "an integer of 200 bytes"),
    "integer of 500 digits": (pickled(b"I" + b"9" * 500 + b"\n"), "at most 40 digits"),
    "memo at 2**32": (pickled(NONE + b"r\xff\xff\xff\xff"), "memo index 4294967295 out of order"),
    "memo never set": (pickled(b"h\x05"), "memo index 5 was never set"),
    "frame of 2**63": (pickled(b"\x95" + struct.pack("<Q", 2**63)), "a frame of"),
    "protocol 200": (b"\x80\xc8N.", "pickle protocol 200"),
    "nothing": (b"", "1 more byte(s) expected"),
    "no end": (b"\x80\x02N", "1 more byte(s) expected"),
    "empty stack": (pickled(b""), "more than is on the stack"),
    "tuple without mark": (pickled(b"t"), "more than is on the stack"),
    "pair of one": (pickled(NONE + b"\x86"), "more than is on the stack"),
    "unknown opcode": (pickled(b"\xff"), "torch.save does not write it"),
    "protocol 0": (b"(dp0\n.", "pickle_protocol=0"),
    "extension registry": (pickled(b"\x82\x01"), "registry"),
    "out-of-band buffer": (pickled(b"\x97"), "buffer"),
    "endless name": (pickled(b"c" + b"a" * 10_000), "a line of at most"),
    "name of numbers": (pickled(number(1) + number(2) + b"\x93"), "module and name"),
    "name of two lines": (pickled(text("a\nb") + text("c") + b"\x93"), "cannot be printed"),
    "long names joined": (
        pickled(_LONG_TEXT + b"q\x00" + b"h\x00h\x00\x930" * 20_000 + NONE),
        "module and name",
    ),
    "calls a number": (pickled(number(1) + tup() + b"R"), "calls a int"),
    "items of a number": (pickled(number(1) + NONE + NONE + b"s"), "sets items of a int"),
    "odd items": (pickled(b"}(NNNu"), "a key without a value"),
    "appends to a dict": (pickled(b"}Na"), "appends to a dict"),
    "adds to a list": (pickled(b"](N\x90"), "adds to a list"),
    "marks": (pickled(MARK * 1_500_000), "nested more than 1000 deep"),
    "opcodes": (pickled(b"N0" * 1_000_001), "more than 2000000 opcodes"),
    "sets": (pickled(b"\x8f" * 500_001), "more than 500000 objects"),
    # Nested so deeply that hashing or comparing would overflow the C stack.
    "list in list": (pickled(b"]" * 100_000 + b"a" * 99_999), None),
    "tuple in tuple": (pickled(b")" + b"\x85" * 100_000), None),
    "call of a call": (pickled(name("a", "b") + b")R" * 100_000), None),
    "deep key": (pickled(b"}" + b")" + b"\x85" * 200_000 + b"Ns"), "cannot be a key"),
    "list as key": (pickled(b"}]Ns"), "a list cannot be a key"),
    # 2**60 elements, were they counted one by one.
    "doubling tuples": (pickled(b")" + b"q\x00h\x00\x86" * 60), None),
    "doubling key": (pickled(b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"Ns"), "cannot be a key"),
    "doubling lists": (pickled(b"]" + b"q\x00](h\x00h\x00e" * 60), None),
    "list in itself": (pickled(b"]q\x00h\x00a"), None),
    # Python does not salt the hashes of numbers: these all have the same.
    "colliding keys": (
        pickled(b"}(" + b"".join(number(i * (2**61 - 1)) + NONE for i in range(2_000)) + b"u"),
        "too many keys",
    ),
    "keys alike in their last bits": (
        pickled(b"}(" + b"".join(number(i << 44) + NONE for i in range(32_768)) + b"u"),
        None,
    ),
    "sets of one list": (
        pickled(b"](" + text("x") * 100_000 + b"eq\x00" + (_SET + b"h\x00\x85R0") * 100 + NONE),
        "more than 500000 objects",
    ),
    "encodes a long text": (
        pickled(
            _LONG_TEXT + b"q\x00" + text("latin1") + b"q\x01" + name("_codecs", "encode") + b"q\x02"
            b"](" + b"h\x02h\x00h\x01\x86R" * 5_000 + b"e"
        ),
        None,
    ),
    "os.system": (pickled(call(name("os", "system"), text("touch /tmp/owned"))), None),
    "eval": (pickled(call(name("builtins", "eval"), text("1/0"))), None),
    "import": (pickled(call(name("importlib", "import_module"), text("antigravity"))), None),
    "unknown module": (pickled(name("antigravity", "x") + b")\x81}b"), None),
    "NumPy scalar of no dtype": (
        pickled(call(name("numpy.core.multiarray", "scalar"), NONE, text("12345678"))),
        None,
    ),
}


def read(data: bytes):
    """Returns the object in a pickle without storages, and its plain form."""
    value = loads(data, TORCH_CALLS | NUMPY_CALLS, _no_storage)
    return value, plain(value)


def _no_storage(pid):
    raise ReadError("no storage here")


def _main() -> None:
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    watching = []
    sys.addaudithook(lambda event, args: watching and event in _WATCHED and _fail(event, args))
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**27, size + 2**27))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    watching.append(True)
    for case, (data, problem) in HOSTILE.items():
        print(case, flush=True)
        try:
            read(data)
            found = None
        except ReadError as error:
            found = str(error)
        if found != problem and (problem is None or problem not in str(found)):
            _fail(found)
    watching.clear()


def _fail(*what: object) -> None:
    raise SystemExit(f"not as expected: {what}")


if __name__ == "__main__":
    _main()
