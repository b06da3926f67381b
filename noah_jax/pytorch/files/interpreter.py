"""The machine that `unpickle` drives: a stack, a memo, and bounds on what they may hold."""

import mmap
from collections.abc import Callable, Mapping
from typing import Any

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.placeholders import Global, Opaque

# Bounds on what one pickle may create. A checkpoint of 1,000 tensors with an optimizer creates
# about 20,000 objects.
MAX_OBJECTS = 500_000
MAX_MARKS = 1_000  # depth of nesting; Python's pickler itself gives up near 1,000
MAX_LINE = 512  # bytes of a text argument
MAX_NAME = 512  # characters of a global's module, and of its name
MAX_DIGITS = 40  # enough for 128 bits, which states of random generators have
MAX_INT_BYTES = 17
MAX_ENCODED = 64  # characters that `_codecs.encode` turns into bytes, for NumPy's scalars
# Python salts the hashes of text but not those of numbers, so a file can choose numeric keys that
# collide. Small integers have distinct hashes and count once; other keys count 32 times.
MAX_NUMBER_KEYS = 32_768
_OTHER_KEY = 32
_SMALL = range(-(2**60), 2**60)
MAX_TUPLE_KEY = 16

_KEY_TYPES = (str, bytes, int, float, bool, type(None))
_UNSET = object()


class Interpreter:
    """Holds the state of reading one pickle; its methods carry out the opcodes.

    A method raises `ReadError` if the bounds or the fixed tables forbid what the opcode asks for,
    and `IndexError` if the stack does not hold what the opcode takes.

    The arguments are those of `unpickle.loads_first`.
    """

    def __init__(
        self,
        data: bytes | mmap.mmap,
        known_calls: Mapping[str, Callable[[tuple], Any]],
        persistent_load: Callable[[Any], Any],
        begin: int = 0,
    ):
        self.data = data
        self.position = begin
        self.known_calls = known_calls
        self.persistent_load = persistent_load
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: list = []
        self.objects = 0
        self.number_keys = 0

    # Reading arguments from the stream.

    def take(self, count: int) -> bytes:
        remaining = len(self.data) - self.position
        if count > remaining:
            raise ReadError(f"{count} more byte(s) expected, {remaining} remain")
        self.position += count
        return self.data[self.position - count : self.position]

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self, size: int) -> str:
        return str(self.take(self.unsigned(size)), "utf-8", "surrogatepass")

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + MAX_LINE + 1)
        if end < 0:
            raise ReadError(f"expected a line of at most {MAX_LINE} bytes")
        return str(self.take(end + 1 - self.position)[:-1], "utf-8")

    def decimal(self) -> None:
        line = self.line().removesuffix("L")
        if len(line) > MAX_DIGITS or not line.removeprefix("-").isdecimal():
            raise ReadError(f"expected an integer of at most {MAX_DIGITS} digits")
        # Protocol 1 writes booleans this way.
        value = {"00": False, "01": True}.get(line)
        self.stack.append(int(line) if value is None else value)

    def long(self, size: int) -> None:
        count = self.unsigned(size)
        if count > MAX_INT_BYTES:
            raise ReadError(f"an integer of {count} bytes, expected at most {MAX_INT_BYTES}")
        self.stack.append(int.from_bytes(self.take(count), "little", signed=True))

    def frame(self) -> None:
        length = self.unsigned(8)
        remaining = len(self.data) - self.position
        if length > remaining:
            raise ReadError(f"a frame of {length} bytes, {remaining} remain")

    def protocol(self) -> None:
        version = self.unsigned(1)
        if version > 5:
            raise ReadError(f"pickle protocol {version}, expected at most 5")

    # Changing the stack and the memo.

    def last(self, count: int) -> tuple:
        if len(self.stack) < count:
            raise IndexError
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def mark(self) -> None:
        if len(self.marks) == MAX_MARKS:
            raise ReadError(f"nested more than {MAX_MARKS} deep")
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list:
        outer = self.marks.pop()
        values, self.stack = self.stack, outer
        return values

    def remember(self, index: int) -> None:
        # Picklers count memo indices from 0, so an index never exceeds the bytes read so far.
        if index > self.position:
            raise ReadError(f"memo index {index} out of order")
        if index >= len(self.memo):
            self.memo.extend([_UNSET] * (index + 1 - len(self.memo)))
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        value = self.memo[index] if index < len(self.memo) else _UNSET
        if value is _UNSET:
            raise ReadError(f"memo index {index} was never set")
        self.stack.append(value)

    def make(self, value: Any) -> None:
        self.count_objects(1)
        self.stack.append(value)

    def count_objects(self, count: int) -> None:
        self.objects += count
        if self.objects > MAX_OBJECTS:
            raise ReadError(f"more than {MAX_OBJECTS} objects")

    # Filling containers.

    def check_key(self, key: Any) -> None:
        if type(key) in (str, bytes):
            return
        self.number_keys += 1 if type(key) is int and key in _SMALL else _OTHER_KEY
        if self.number_keys > MAX_NUMBER_KEYS:
            raise ReadError("too many keys that are not text")
        # Hashing nested tuples could take for ever or overflow the C stack.
        for part in key if type(key) is tuple and len(key) <= MAX_TUPLE_KEY else (key,):
            by_identity = type(part).__hash__ is object.__hash__
            if type(part) not in _KEY_TYPES and not by_identity:
                raise ReadError(f"a {type(part).__name__} cannot be a key here")

    def set_items(self, values: list | tuple) -> None:
        target = self.stack[-1]
        if len(values) % 2:
            raise ReadError("a key without a value")
        pairs = zip(values[::2], values[1::2], strict=True)
        if type(target) is Opaque:
            target.items.extend(pairs)
            return
        if type(target) is not dict:
            raise ReadError(f"sets items of a {type(target).__name__}")
        for key, value in pairs:
            self.check_key(key)
            target[key] = value

    def append(self, values: list | tuple) -> None:
        target = self.stack[-1]
        if type(target) not in (list, Opaque):
            raise ReadError(f"appends to a {type(target).__name__}")
        (target.items if type(target) is Opaque else target).extend(values)

    def add(self, values: list) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise ReadError(f"adds to a {type(target).__name__}")
        target.update(self.set_of(values))

    def set_of(self, values: list) -> set:
        self.count_objects(len(values))
        for value in values:
            self.check_key(value)
        return set(values)

    # Naming globals and calling them.

    def name(self, module: Any, name: Any) -> None:
        # Lengths are checked first: joining long texts again and again would fill the memory.
        if any(type(part) is not str or len(part) > MAX_NAME for part in (module, name)):
            raise ReadError(f"expected a module and name of at most {MAX_NAME} characters")
        # Names appear in messages, and a message is one line.
        if not (module + name).isprintable():
            raise ReadError("a name with characters that cannot be printed")
        self.make(Global(f"{module}.{name}"))

    def call(self, function: Any, args: Any) -> None:
        if type(function) not in (Global, Opaque) or type(args) is not tuple:
            raise ReadError(f"calls a {type(function).__name__}")
        value = NotImplemented
        if type(function) is Global:
            value = self.builtin(function.name, args)
            if value is NotImplemented and function.name in self.known_calls:
                value = self.known_calls[function.name](args)
        self.make(Opaque(function.name, args) if value is NotImplemented else value)

    def builtin(self, name: str, args: tuple) -> Any:
        types = [type(arg) for arg in args[:3]]
        if name == "collections.OrderedDict" and not args:
            return {}
        if name == "collections.defaultdict" and types == [Global]:
            return {}
        # Protocols 1 to 3 write sets this way; 1 and 2 use Python 2's name of the module.
        if name in ("builtins.set", "__builtin__.set") and types == [list]:
            return self.set_of(args[0])
        if name in ("builtins.frozenset", "__builtin__.frozenset") and types == [list]:
            return frozenset(self.set_of(args[0]))
        if name == "_codecs.encode" and types == [str, str] and args[1] == "latin1":
            return args[0].encode("latin1") if len(args[0]) <= MAX_ENCODED else NotImplemented
        # Protocol 1 creates instances this way.
        if name in ("copyreg._reconstructor", "copy_reg._reconstructor") and types[:1] == [Global]:
            return Opaque(args[0].name)
        return NotImplemented

    def new(self, count: int) -> None:
        cls, args, *_ = self.last(count)
        if type(cls) not in (Global, Opaque) or type(args) is not tuple:
            raise ReadError(f"makes an instance of a {type(cls).__name__}")
        self.make(Opaque(cls.name, args))

    def build(self) -> None:
        target, state = self.last(2)
        # Attributes of other objects, such as an ordered dict's `_metadata`, are not needed.
        if type(target) is Opaque:
            target.state = state
        self.stack.append(target)
