"""Shows the progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0

Item = TypeVar("Item")


class ProgressMeter:
    """Counts processed items and shows the count.

    On a terminal it is a bar; otherwise a line every ten seconds and one at the end.

    Args:
        what: what is being done, such as "Evaluating".
        total: number of items, if known.
        unit: what an item is called.
        stream: where to write; stderr by default.
    """

    def __init__(
        self, what: str, total: int | None, unit: str = "images", stream: TextIO | None = None
    ):
        self.n = 0
        self._what, self._total, self._unit = what, total, unit
        self._stream = stream or sys.stderr
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(desc=what, total=total, unit=f" {unit}", file=self._stream)
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES

    def __enter__(self) -> ProgressMeter:
        return self

    def __exit__(self, *error) -> None:
        if self._bar is not None:
            self._bar.close()
        elif error[0] is None:
            self._write_line()

    def update(self, count: int = 1) -> None:
        """Adds to the number of items done."""
        self.n += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() >= self._next_line:
            self._write_line()
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES

    def _write_line(self) -> None:
        share = f" of {self._total}" if self._total is not None else ""
        self._stream.write(f"{self._what}: {self.n}{share} {self._unit}\n")
        self._stream.flush()


def with_progress(
    items: Iterable[Item],
    what: str,
    total: int | None,
    stream: TextIO | None = None,
    unit: str = "images",
) -> Iterator[Item]:
    """Yields the items while a `ProgressMeter` counts them."""
    with ProgressMeter(what, total, unit, stream) as meter:
        for item in items:
            yield item
            meter.update()
