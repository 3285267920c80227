"""What the objects of a pickle become: names, stubs, numbers, and a few plain containers.

A pickle is a program that names Python objects and calls them, so whoever writes one runs what he
likes on the reader's machine. Here a name stays a name (`Global`), and a call looks the name up in
a table of a few harmless builders. What the table lacks becomes a `Stub`, an inert thing that
remembers its name and swallows whatever the pickle does to it: checkpoints carry dates, paths and
configuration objects along with their weights, and those must neither be imported nor keep the
weights from being read. Names that only an attack needs (`os.system`, `builtins.eval`) would do no
harm as stubs either, but a file that has them is not to be trusted and is refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from model.importers.refusals import Budget, Refusal, damaged, shown

_RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# A method or an enumeration's member is pickled as getattr(class, name), in mmengine's histories
# for example; like all else it is not called here.
_HARMLESS_BUILTINS = re.compile(
    r"set|frozenset|dict|list|tuple|int|float|complex|bool|str|bytes|bytearray|slice|range|object"
    r"|getattr|long|unicode|xrange"
)
_ATTACK_MODULES = re.compile(
    r"builtins|os|posix|nt|ntpath|posixpath|subprocess|_posixsubprocess|commands|popen2|pty|sys"
    r"|platform|importlib|imp|runpy|code|codeop|pydoc|pip|ensurepip|venv|distutils|setuptools|io"
    r"|_io|shutil|linecache|socket|asyncio|http|urllib|urllib2|requests|ftplib|smtplib|telnetlib"
    r"|webbrowser|ctypes|pickle|_pickle|cPickle|marshal|pdb|bdb|timeit|profile|cProfile|trace"
)
_MAX_KEY_ITEMS = 64
_MAX_KEY_DEPTH = 3


class Stub:
    """An object of a pickle that was not made, only noted.

    Attributes:
        name: what was called or named, such as "datetime.datetime".
    """

    def __init__(self, name: str):
        self.name = name

    def set_state(self, state: Any) -> None:
        """Takes the state that the pickle gives the object; stubs drop it."""


class Global(Stub):
    """A class or function that the pickle names; `name` is its module and name with a dot."""


class Numbers(Stub):
    """An object of a pickle that stands for an array."""

    def to_array(self, budget: Budget) -> np.ndarray:
        """The array, with numbers as in the file.

        Raises:
            Refusal: the parts of the array do not fit together, or it holds no numbers.
        """
        raise NotImplementedError


def named_global(module: Any, name: Any) -> Global:
    """The global that a pickle names.

    Raises:
        Refusal: only an attack names it.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise damaged("a pickle names an object without a text")
    module = _RENAMED_MODULES.get(module, module)
    harmless = module == "builtins" and _HARMLESS_BUILTINS.fullmatch(name)
    if _ATTACK_MODULES.fullmatch(module.split(".")[0]) and not harmless:
        raise Refusal(
            f"it names {shown(f'{module}.{name}')}, which weights never need but attacks do: "
            "the file is unsafe, delete it and get the weights from another source"
        )
    return Global(f"{module}.{name}")


def container_builders(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Builders, by full name, of dicts and of what Python 2 and 3 spell as a call.

    Copies are charged to the budget: one text encoded a million times is a bomb.
    """

    def encode(text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise damaged(f"bytes in the encoding {shown(encoding)}")
        budget.charge(len(text))
        return text.encode("latin1")

    def build_bytes(content: str | bytes = b"", *encoding: str) -> bytes:
        return content if isinstance(content, bytes) else encode(content, *encoding)

    def build_dict(items: list = ()) -> dict:
        budget.charge(100 * len(items))
        return dict_of_items(items)

    return {
        "_codecs.encode": encode,
        "builtins.bytearray": build_bytes,
        "builtins.bytes": build_bytes,
        "builtins.dict": build_dict,
        "collections.OrderedDict": build_dict,
        "collections.defaultdict": lambda *_: {},
    }


def dict_of_items(items: Iterable[tuple[Any, Any]]) -> dict:
    """A dict of keys and values.

    Raises:
        Refusal: a key is no simple thing.
    """
    return {_checked_key(key): value for key, value in items}


def _checked_key(key: Any, depth: int = 0) -> Any:
    # Hashing a deeply nested tuple overflows the C stack, which no exception reports.
    if isinstance(key, tuple):
        if depth >= _MAX_KEY_DEPTH or len(key) > _MAX_KEY_ITEMS:
            raise damaged("the key of a dict is too large")
        for item in key:
            _checked_key(item, depth + 1)
    elif not isinstance(key, str | bytes | int | float | Stub | None):
        raise damaged(f"{shown(key)} is the key of a dict")
    return key
