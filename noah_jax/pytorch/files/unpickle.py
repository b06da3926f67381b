"""Reads a pickle as data: imports nothing that it names, calls nothing that it asks for.

The interpreter knows the opcodes that `torch.save` writes. A global becomes its name. Calling a
global gives a plain container or number if a fixed table has an entry for it, and otherwise a
placeholder that remembers the name and the arguments. Python's own unpickler is no base for this:
its C code allocates whatever a length or a memo index asks for before it checks that the bytes
are there.
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from typing import Any

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.interpreter import Interpreter

# A checkpoint of 1,000 tensors with an optimizer has about 100,000 opcodes.
MAX_OPCODES = 2_000_000


def loads(
    data: bytes,
    known_calls: Mapping[str, Callable[[tuple], Any]],
    persistent_load: Callable[[Any], Any],
) -> Any:
    """Returns the object that a pickle describes.

    Args:
      data: The whole pickle, protocol 1 to 5.
      known_calls: For the `module.name` of a global, the function that computes the result of
        calling it. The function takes the tuple of arguments and returns `NotImplemented` for
        arguments that it does not know.
      persistent_load: Function that resolves a persistent id, such as a storage of PyTorch's.

    Returns:
      Plain containers and numbers, results of `known_calls` and `persistent_load`, and `Global`
      and `Opaque` placeholders. The object may contain itself, as pickles allow.

    Raises:
      ReadError: If anything is wrong; the message names the opcode and its position.
    """
    return loads_first(data, known_calls, persistent_load)[0]


def loads_first(
    data: bytes | mmap.mmap,
    known_calls: Mapping[str, Callable[[tuple], Any]],
    persistent_load: Callable[[Any], Any],
    begin: int = 0,
) -> tuple[Any, int]:
    """Returns the object of the pickle that begins at a byte, and where the pickle ends.

    The arguments are those of `loads`; behind the pickle there may be anything.

    Raises:
      ReadError: See `loads`.
    """
    interpreter = Interpreter(data, known_calls, persistent_load, begin)
    for _ in range(MAX_OPCODES):
        start = interpreter.position
        try:
            opcode = interpreter.take(1)[0]
            if opcode == ord("."):
                return interpreter.stack.pop(), interpreter.position
            if opcode not in _OPCODES:
                raise ReadError(_UNUSUAL.get(opcode, "torch.save does not write it"))
            _OPCODES[opcode](interpreter)
        except IndexError:
            problem = "takes more than is on the stack"
        except (ReadError, UnicodeError) as error:
            problem = str(error)
        else:
            continue
        shown = data[start : start + 1]
        raise ReadError(f"opcode {shown!r} at byte {start} of the pickle: {problem}")
    raise ReadError(f"the pickle has more than {MAX_OPCODES} opcodes")


_PROTOCOL_0 = "written with pickle_protocol=0, from which PyTorch cannot load tensors either"
_UNUSUAL = {
    **dict.fromkeys(b"PVSFlpgd", _PROTOCOL_0),
    **dict.fromkeys(b"\x82\x83\x84", "takes a class from a registry that is not in the file"),
    **dict.fromkeys(b"\x97\x98", "takes a buffer that is not in the file"),
}


def _push(get: Callable[[Interpreter], Any]) -> Callable[[Interpreter], None]:
    return lambda s: s.stack.append(get(s))


_OPCODES: dict[int, Callable[[Interpreter], Any]] = {
    0x80: Interpreter.protocol,
    0x95: Interpreter.frame,
    # Constants and numbers.
    ord("N"): _push(lambda s: None),
    0x88: _push(lambda s: True),
    0x89: _push(lambda s: False),
    ord("I"): Interpreter.decimal,
    ord("L"): Interpreter.decimal,
    ord("J"): _push(lambda s: int.from_bytes(s.take(4), "little", signed=True)),
    ord("K"): _push(lambda s: s.unsigned(1)),
    ord("M"): _push(lambda s: s.unsigned(2)),
    0x8A: lambda s: s.long(1),
    0x8B: lambda s: s.long(4),
    ord("G"): _push(lambda s: struct.unpack(">d", s.take(8))[0]),
    # Text and bytes.
    0x8C: _push(lambda s: s.text(1)),
    ord("X"): _push(lambda s: s.text(4)),
    ord("U"): _push(lambda s: s.text(1)),  # Python 2's, as PyTorch reads them
    ord("T"): _push(lambda s: s.text(4)),
    0x8D: _push(lambda s: s.text(8)),
    ord("C"): _push(lambda s: s.take(s.unsigned(1))),
    ord("B"): _push(lambda s: s.take(s.unsigned(4))),
    0x8E: _push(lambda s: s.take(s.unsigned(8))),
    0x96: _push(lambda s: s.take(s.unsigned(8))),
    # The stack and the memo.
    ord("("): Interpreter.mark,
    ord("0"): lambda s: s.stack.pop(),
    ord("1"): Interpreter.since_mark,
    ord("q"): lambda s: s.remember(s.unsigned(1)),
    ord("r"): lambda s: s.remember(s.unsigned(4)),
    0x94: lambda s: s.remember(len(s.memo)),
    ord("h"): lambda s: s.recall(s.unsigned(1)),
    ord("j"): lambda s: s.recall(s.unsigned(4)),
    # Containers.
    ord(")"): lambda s: s.make(()),
    ord("t"): lambda s: s.make(tuple(s.since_mark())),
    0x85: lambda s: s.make(s.last(1)),
    0x86: lambda s: s.make(s.last(2)),
    0x87: lambda s: s.make(s.last(3)),
    ord("]"): lambda s: s.make([]),
    ord("a"): lambda s: s.append(s.last(1)),
    ord("e"): lambda s: s.append(s.since_mark()),
    ord("}"): lambda s: s.make({}),
    ord("s"): lambda s: s.set_items(s.last(2)),
    ord("u"): lambda s: s.set_items(s.since_mark()),
    0x8F: lambda s: s.make(set()),
    0x90: lambda s: s.add(s.since_mark()),
    0x91: lambda s: s.make(frozenset(s.set_of(s.since_mark()))),
    # Names and calls.
    ord("c"): lambda s: s.name(s.line(), s.line()),
    0x93: lambda s: s.name(*s.last(2)),
    ord("R"): lambda s: s.call(*s.last(2)),
    0x81: lambda s: s.new(2),
    0x92: lambda s: s.new(3),
    ord("b"): Interpreter.build,
    ord("Q"): _push(lambda s: s.persistent_load(s.stack.pop())),
}
