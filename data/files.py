"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def whole_file(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a file for writing; a reader of `path` finds all of it or what was there before.

    Args:
      path: where to; `path`.tmp beside it is written and renamed, and removed upon an error.
      mode: "w" for UTF-8 text or "wb".

    Raises:
      OSError: the file cannot be written.
    """
    temporary_path = f"{os.fspath(path)}.tmp"
    try:
        with open(temporary_path, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(temporary_path, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary_path)
        raise
