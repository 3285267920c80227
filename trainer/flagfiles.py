"""Flagfiles: text files with one flag per line, which may include others by --flagfile.

Lines are read as by a shell: text after ` #` is a comment, quotes around a value or around an item
of a comma-separated list are removed, and a backslash at the end, as in a copied command, is
ignored. An included file is searched for next to the file that names it, then in the current
folder. Files in configs/ that are not in the current folder are taken from the installed package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from data import files

INCLUDE = "flagfile"
# configs/ is next to trainer/, both in the repository and in an installed wheel.
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# A quote opens only at the start of a line, a value or an item of a list, so Anna's is a name.
_PIECES = re.compile(
    r"""(?<![^=,\s])(?:"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>[^']*)')(?=[,\s]|$)
    |(?P<comment>\s+(?:\#.*|\\)$)
    |(?P<open>(?<![^=,\s])["'])
    |(?P<plain>.)""",
    re.VERBOSE,
)
_NEEDS_QUOTES = re.compile(r"""^\s|\s$|\s\#|\s\\$|\s-|(?<![^=,\s])["']""")


class Argument(NamedTuple):
    """A flag as given by the user."""

    text: str  # --name=value
    place: str  # FILE:LINE, or "" on the command line


class FlagfileError(ValueError):
    """A flagfile cannot be used; the message starts with its name and the line."""


def read_flagfile(path: str, place: str = "", including: tuple[str, ...] = ()) -> list[Argument]:
    """Lists the flags of a file, and in place of each inclusion those of the included file.

    Args:
        path: the file.
        place: file and line that name it, for the message.
        including: the chain of files that include it.

    Raises:
        FlagfileError: it cannot be read, includes itself, or has a line that is not a flag.
    """
    try:
        with files.open_file(path) as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise FlagfileError(
            f"{place and place + ': '}--flagfile={path} cannot be read ({reason})."
        ) from None
    found: list[Argument] = []
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        text = _read_line(line, place)
        name, _, value = text.lstrip("-").partition("=")
        if name == INCLUDE:
            included = _find_included(value, path)
            if included in (path, *including):
                raise FlagfileError(f"{place}: {included} includes itself.")
            found += read_flagfile(included, place, (*including, path))
        elif text:
            found.append(Argument(text, place))
    return found


def expand_flagfiles(arguments: list[str]) -> list[Argument]:
    """Lists a command line's flags, those of its flagfiles first, because its own override them.

    Raises:
        FlagfileError: as for `read_flagfile`.
    """
    own, from_files = [], []
    rest: Iterator[str] = iter(arguments)
    for text in rest:
        name, equals, value = text.lstrip("-").partition("=")
        if text.startswith("-") and name == INCLUDE:
            from_files += read_flagfile(_find(value if equals else next(rest, "")))
        else:
            own.append(Argument(text, ""))
    return from_files + own


def quote(value: str) -> str:
    """Quotes a value for a flagfile if necessary."""
    if not _NEEDS_QUOTES.search(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _read_line(line: str, place: str) -> str:
    line = line.strip()
    if line.startswith(("#", "//")):
        return ""
    text, quoted = "", ""
    for piece in _PIECES.finditer(line):
        if piece["open"]:
            raise FlagfileError(f"{place}: a quote is not closed: {line}")
        if piece["comment"]:
            continue
        text += piece["plain"] or re.sub(r'\\(["\\])', r"\1", piece["double"] or "")
        text += piece["single"] or ""
        quoted += piece["plain"] or ""
    if text and not text.startswith("-"):
        raise FlagfileError(f"{place}: {text!r} is not a flag: flags look like --name=value.")
    if re.search(r"\s--?[a-z]", quoted):
        raise FlagfileError(
            f"{place}: write one flag per line, and quote values that contain spaces: {line}"
        )
    return text


def _find_included(name: str, including: str) -> str:
    name = files.expand(name)
    if files.has_scheme(name):
        return name
    beside = os.path.join(os.path.dirname(including), name)
    return beside if files.exists(beside) else _find(name)


def _find(name: str) -> str:
    """Returns the path itself or, if there is no such file, that of the package's own file."""
    own = os.path.join(_HOME, name)
    is_own = name.startswith("configs/") and not files.exists(name) and files.exists(own)
    return own if is_own else files.expand(name)
