"""Reads pickles as data, by a stack machine that imports nothing and calls only builders.

`pickle_objects` explains what the names and calls of a pickle become. Python's own unpickler is not
suitable: it allocates its memo up to any index that a pickle names, and the objects that it makes
accept any state, which NumPy's, for example, trust.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

from model.importers.pickle_objects import Global, Stub, dict_of_items, named_global
from model.importers.refusals import Refusal, damaged, shown

_MAX_STEPS = 5_000_000
_MAX_DIGITS = 1000

Builders = Mapping[str, Callable[..., Any]]


def load_pickle(
    content: bytes,
    start: int,
    builders: Builders,
    persistent_load: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """Reads one pickle of any protocol.

    Args:
        content: a file's bytes.
        start: where the pickle begins.
        builders: functions to call, by full names of globals.
        persistent_load: returns the object of a persistent id; without it, such ids are refused.

    Returns:
        The object, and where the pickle ends.

    Raises:
        Refusal: the pickle is truncated, malformed, unsafe or implausibly long.
    """
    interpreter = _Interpreter(content, start, builders, persistent_load)
    return interpreter.run(), interpreter.position


class _Interpreter:
    """The stack machine that executes pickles."""

    def __init__(self, content, start, builders, persistent_load):
        self.position = start
        self._content = content
        self._builders = builders
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._outer_stacks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_STEPS):
            opcode = self._take(1)
            if opcode == pickle.STOP:
                return self._pop()
            if opcode in _CONSTANTS:
                made = _CONSTANTS[opcode](self)  # may return to the stack outside of a mark
                self._stack.append(made)
            elif opcode in _ACTIONS:
                _ACTIONS[opcode](self)
            else:
                raise damaged(f"byte {self.position - 1} is not a pickle instruction")
        raise Refusal(
            f"its pickle has more than {_MAX_STEPS:,} instructions, which weights do not need: "
            "the file is unsafe or damaged, get the weights from another source"
        )

    # Reading of the instructions' operands.

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self._content):
            raise damaged(f"a pickle needs {count} bytes at byte {self.position}")
        taken = self._content[self.position : end]
        self.position = end
        return taken

    def unpack(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def counted(self, layout: str) -> bytes:
        return self._take(self.unpack(layout))

    def line(self) -> bytes:
        end = self._content.find(b"\n", self.position)
        if end < 0:
            raise damaged("a line of a pickle does not end")
        return self._take(end + 1 - self.position)[:-1]

    # Operations on the stack.

    def _pop(self) -> Any:
        if not self._stack:
            raise damaged("a pickle takes more from the stack than it has put there")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise damaged("a pickle reads from an empty stack")
        return self._stack[-1]

    def mark(self) -> None:
        self._outer_stacks.append(self._stack)
        self._stack = []

    def pop_to_mark(self) -> list[Any]:
        if not self._outer_stacks:
            raise damaged("a pickle returns to a mark that it has not set")
        items, self._stack = self._stack, self._outer_stacks.pop()
        return items

    def pop(self) -> None:
        # The topmost entry may be a mark, which is the border between two stacks here.
        if self._stack:
            self._stack.pop()
        else:
            self.pop_to_mark()

    def tuple_of(self, count: int) -> tuple:
        return tuple([self._pop() for _ in range(count)][::-1])

    def duplicate(self) -> None:
        self._stack.append(self._top())

    # The memo.

    def memoize(self, index: int | None = None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def recall(self, index: int) -> Any:
        if index not in self._memo:
            raise damaged(f"a pickle recalls object {index}, which it has not stored")
        return self._memo[index]

    # Containers.

    def extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Stub):
            raise damaged(f"a pickle appends to {shown(target)}")

    def set_items(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, dict):
            target.update(_dict_of(items))
        elif not isinstance(target, Stub):
            raise damaged(f"a pickle sets items of {shown(target)}")

    def append_one(self) -> None:
        self.extend([self._pop()])

    def set_one_item(self) -> None:
        self.set_items(list(self.tuple_of(2)))

    # Objects.

    def stack_global(self) -> Global:
        return named_global(*self.tuple_of(2))

    def line_global(self) -> Global:
        return named_global(self.line().decode(), self.line().decode())

    def called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Stub) or not isinstance(arguments, tuple):
            raise damaged(f"a pickle calls {shown(function)}")
        build = self._builders.get(function.name) if isinstance(function, Global) else None
        if build is None:
            return Stub(function.name)
        try:
            return build(*arguments)
        except (AttributeError, TypeError, ValueError) as error:
            raise damaged(f"{function.name} does not accept the arguments in a pickle") from error

    def reduce(self) -> Any:
        return self.called(*self.tuple_of(2))

    def reduce_with_keywords(self) -> Any:
        function, arguments, keywords = self.tuple_of(3)
        return self.called(function, (*arguments, keywords) if keywords else arguments)

    def object_of(self, function: Any, arguments: list[Any]) -> Any:
        return self.called(function, tuple(arguments))

    def object_from_mark(self) -> Any:
        function, *arguments = self.pop_to_mark() or [None]
        return self.object_of(function, arguments)

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Stub):
            target.set_state(state)
        elif not isinstance(target, dict):  # the attributes of an OrderedDict are not needed
            raise damaged(f"a pickle gives a state to {shown(target)}")

    def persistent(self, persistent_id: Any) -> Any:
        if self._persistent_load is None:
            raise damaged("a pickle refers to an object outside of it")
        return self._persistent_load(persistent_id)


def _dict_of(items: list[Any]) -> dict:
    return dict_of_items(zip(items[::2], items[1::2], strict=True))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _old_text(data: bytes) -> str:
    """Decodes a string of Python 2, which may be text or bytes; latin1 preserves the bytes."""
    return data.decode("latin1")


def _little_endian(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _quoted_line(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise damaged("a string of a pickle has no quotes")
    return _old_text(codecs.escape_decode(line[1:-1])[0])


def _integer_line(line: bytes) -> int | bool:
    if len(line) > _MAX_DIGITS:  # the running time of int grows with their square
        raise damaged("a number of a pickle has too many digits")
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line)


def _counted(layout: str, decode: Callable[[bytes], Any]):
    return lambda machine: decode(machine.counted(layout))


def _line(decode: Callable[[bytes], Any]):
    return lambda machine: decode(machine.line())


# Instructions that push one object on the stack, by their byte.
_CONSTANTS: dict[bytes, Callable[[_Interpreter], Any]] = {
    pickle.NONE: lambda machine: None,
    pickle.NEWTRUE: lambda machine: True,
    pickle.NEWFALSE: lambda machine: False,
    pickle.EMPTY_TUPLE: lambda machine: (),
    pickle.EMPTY_LIST: lambda machine: [],
    pickle.EMPTY_DICT: lambda machine: {},
    pickle.EMPTY_SET: lambda machine: Stub("builtins.set"),
    pickle.BININT: lambda machine: machine.unpack("<i"),
    pickle.BININT1: lambda machine: machine.unpack("<B"),
    pickle.BININT2: lambda machine: machine.unpack("<H"),
    pickle.BINFLOAT: lambda machine: machine.unpack(">d"),
    pickle.LONG1: _counted("<B", _little_endian),
    pickle.LONG4: _counted("<i", _little_endian),
    pickle.SHORT_BINSTRING: _counted("<B", _old_text),
    pickle.BINSTRING: _counted("<i", _old_text),
    pickle.SHORT_BINUNICODE: _counted("<B", _text),
    pickle.BINUNICODE: _counted("<I", _text),
    pickle.BINUNICODE8: _counted("<Q", _text),
    pickle.SHORT_BINBYTES: _counted("<B", bytes),
    pickle.BINBYTES: _counted("<I", bytes),
    pickle.BINBYTES8: _counted("<Q", bytes),
    pickle.BYTEARRAY8: _counted("<Q", bytes),
    pickle.INT: _line(_integer_line),
    pickle.LONG: _line(lambda line: _integer_line(line.rstrip(b"L"))),
    pickle.FLOAT: _line(float),
    pickle.STRING: _line(_quoted_line),
    pickle.UNICODE: _line(lambda line: line.decode("raw-unicode-escape")),
    pickle.TUPLE: lambda machine: tuple(machine.pop_to_mark()),
    pickle.TUPLE1: lambda machine: machine.tuple_of(1),
    pickle.TUPLE2: lambda machine: machine.tuple_of(2),
    pickle.TUPLE3: lambda machine: machine.tuple_of(3),
    pickle.LIST: lambda machine: machine.pop_to_mark(),
    pickle.DICT: lambda machine: _dict_of(machine.pop_to_mark()),
    pickle.FROZENSET: lambda machine: machine.object_of(
        Stub("builtins.frozenset"), machine.pop_to_mark()
    ),
    pickle.GET: lambda machine: machine.recall(_integer_line(machine.line())),
    pickle.BINGET: lambda machine: machine.recall(machine.unpack("<B")),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.unpack("<I")),
    pickle.GLOBAL: lambda machine: machine.line_global(),
    pickle.STACK_GLOBAL: lambda machine: machine.stack_global(),
    pickle.REDUCE: lambda machine: machine.reduce(),
    pickle.NEWOBJ: lambda machine: machine.reduce(),
    pickle.NEWOBJ_EX: lambda machine: machine.reduce_with_keywords(),
    pickle.INST: lambda machine: machine.object_of(machine.line_global(), machine.pop_to_mark()),
    pickle.OBJ: lambda machine: machine.object_from_mark(),
    pickle.PERSID: lambda machine: machine.persistent(machine.line().decode()),
    pickle.BINPERSID: lambda machine: machine.persistent(*machine.tuple_of(1)),
}

# Instructions that change existing objects.
_ACTIONS: dict[bytes, Callable[[_Interpreter], Any]] = {
    pickle.PROTO: lambda machine: machine.unpack("<B"),
    pickle.FRAME: lambda machine: machine.unpack("<Q"),
    pickle.MARK: lambda machine: machine.mark(),
    pickle.POP: lambda machine: machine.pop(),
    pickle.POP_MARK: lambda machine: machine.pop_to_mark(),
    pickle.DUP: lambda machine: machine.duplicate(),
    pickle.PUT: lambda machine: machine.memoize(_integer_line(machine.line())),
    pickle.BINPUT: lambda machine: machine.memoize(machine.unpack("<B")),
    pickle.LONG_BINPUT: lambda machine: machine.memoize(machine.unpack("<I")),
    pickle.MEMOIZE: lambda machine: machine.memoize(),
    pickle.APPEND: lambda machine: machine.append_one(),
    pickle.APPENDS: lambda machine: machine.extend(machine.pop_to_mark()),
    pickle.SETITEM: lambda machine: machine.set_one_item(),
    pickle.SETITEMS: lambda machine: machine.set_items(machine.pop_to_mark()),
    pickle.ADDITEMS: lambda machine: machine.extend(machine.pop_to_mark()),
    pickle.BUILD: lambda machine: machine.build(),
}
