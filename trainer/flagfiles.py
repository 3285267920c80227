"""Flagfiles: text with a flag a line, which may include other flagfiles by --flagfile.

A line is read as a shell would read it: what follows ` #` is a comment, quotes around a value or an
item of a comma list are taken off, and a backslash at the end, as in a copied command, is passed
over. An included file is looked for beside the file that names it, then in the current folder; what
is not in the current folder's configs/, in those that come with the package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from data import files

INCLUDE = "flagfile"
# configs/ lies beside trainer/, in the repository as where a wheel is installed.
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# A quote opens at the head of the line, of a value or of a list's item only: Anna's is a name.
_PIECES = re.compile(
    r"""(?<![^=,\s])(?:"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>[^']*)')(?=[,\s]|$)
    |(?P<comment>\s+(?:\#.*|\\)$)
    |(?P<open>(?<![^=,\s])["'])
    |(?P<plain>.)""",
    re.VERBOSE,
)
_NEEDS_QUOTES = re.compile(r"""^\s|\s$|\s\#|\s\\$|\s-|(?<![^=,\s])["']""")


class Argument(NamedTuple):
    """A flag as it was given."""

    text: str  # --name=value
    place: str  # FILE:LINE, or "" on the command line


class FlagfileError(ValueError):
    """A flagfile cannot be used; the message begins with its name and the line."""


def read_flagfile(path: str, place: str = "", including: tuple[str, ...] = ()) -> list[Argument]:
    """Lists the flags of a file and, where they are included, those of other files.

    Args:
        path: the file.
        place: where it is named, for the message.
        including: the files that lead to it.

    Raises:
        FlagfileError: it cannot be read, includes itself, or has a line that is no flag.
    """
    try:
        with files.open_file(path) as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
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
    """A command line's flags: those of its flagfiles first, since its own win over them.

    Raises:
        FlagfileError: as `read_flagfile`.
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
    """A value as it has to stand in a flagfile."""
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
            raise FlagfileError(f"{place}: a quote is opened and not closed: {line}")
        if piece["comment"]:
            continue
        text += piece["plain"] or re.sub(r'\\(["\\])', r"\1", piece["double"] or "")
        text += piece["single"] or ""
        quoted += piece["plain"] or ""
    if text and not text.startswith("-"):
        raise FlagfileError(f"{place}: {text!r} is not a flag: flags look like --name=value.")
    if re.search(r"\s--?[a-z]", quoted):
        raise FlagfileError(
            f"{place}: write one flag a line, and quote a value with blanks: {line}"
        )
    return text


def _find_included(name: str, including: str) -> str:
    name = files.expand(name)
    if files.has_scheme(name):
        return name
    beside = os.path.join(os.path.dirname(including), name)
    return beside if files.exists(beside) else _find(name)


def _find(name: str) -> str:
    """The path itself, or that of the package's own file where there is none."""
    own = os.path.join(_HOME, name)
    is_own = name.startswith("configs/") and not files.exists(name) and files.exists(own)
    return own if is_own else files.expand(name)
