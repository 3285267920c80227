"""The objects that pickles are read into: names, stubs, numbers, and a few plain containers.

A pickle is a program that names Python objects and calls them, so its author can run any code on
the reader's machine. Here a name stays a name (`Global`), and a call looks the name up in a table
of a few harmless builders. A call of any other name becomes a `Stub`, an inert object that
remembers its name and ignores what the pickle does to it. Checkpoints contain dates, paths and
configuration objects along with their weights, and those must neither be imported nor prevent the
weights from being read. Names that only an attack needs (`os.system`, `builtins.eval`) would be
harmless as stubs too, but a file that has them cannot be trusted and is refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from model.importers.refusals import Budget, Refusal, damaged, shown

_RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# A method or an enumeration's member is pickled as getattr(class, name), in mmengine's histories
# for example; it is not called here.
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
    """An object of a pickle that is not created; only its name is known.

    Attributes:
        name: what was called or named, such as "datetime.datetime".
    """

    def __init__(self, name: str):
        self.name = name

    def set_state(self, state: Any) -> None:
        """Receives the object's state from the pickle; stubs ignore it."""


class Global(Stub):
    """A class or function that the pickle names; `name` is its module and name with a dot."""


class Numbers(Stub):
    """An object of a pickle that stands for an array."""

    def to_array(self, budget: Budget) -> np.ndarray:
        """Returns the array, with numbers as in the file.

        Raises:
            Refusal: the parts of the array do not fit together, or its type is not numeric.
        """
        raise NotImplementedError


def named_global(module: Any, name: Any) -> Global:
    """Returns the global that a pickle names.

    Raises:
        Refusal: only attacks use this name.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise damaged("a pickle names an object by a value that is not a string")
    module = _RENAMED_MODULES.get(module, module)
    harmless = module == "builtins" and _HARMLESS_BUILTINS.fullmatch(name)
    if _ATTACK_MODULES.fullmatch(module.split(".")[0]) and not harmless:
        raise Refusal(
            f"it names {shown(f'{module}.{name}')}, which weights never need but attacks do: the "
            "file is unsafe; delete it and get the weights from another source"
        )
    return Global(f"{module}.{name}")


def container_builders(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Returns builders, by full name, of dicts and of objects that pickles make by a call.

    Copies are charged to the budget, because encoding one string a million times is an attack.
    """

    def encode(text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise damaged(f"bytes have the encoding {shown(encoding)}")
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
    """Makes a dict of keys and values.

    Raises:
        Refusal: a key is not a simple object.
    """
    return {_checked_key(key): value for key, value in items}


def _checked_key(key: Any, depth: int = 0) -> Any:
    # Hashing a deeply nested tuple overflows the C stack, which raises no exception.
    if isinstance(key, tuple):
        if depth >= _MAX_KEY_DEPTH or len(key) > _MAX_KEY_ITEMS:
            raise damaged("the key of a dict is too large")
        for item in key:
            _checked_key(item, depth + 1)
    elif not isinstance(key, str | bytes | int | float | Stub | None):
        raise damaged(f"{shown(key)} is used as the key of a dict")
    return key
