"""Progress is a bar on a terminal and whole lines in a log."""

import io

from data import progress
from data.progress import ProgressMeter, with_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_plain_lines(monkeypatch):
    clock = iter([0.0, 4.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    log = io.StringIO()
    assert list(with_progress("abc", "Evaluating", 3, log)) == ["a", "b", "c"]
    assert log.getvalue() == "Evaluating: 2 of 3 images\nEvaluating: 3 of 3 images\n"


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    with ProgressMeter("Reading", None, stream=terminal) as meter:
        meter.update(5)
    assert meter.n == 5
    assert "\rReading: 5 images" in terminal.getvalue()


def test_what_breaks_off_is_not_called_done():
    log = io.StringIO()
    items = with_progress("abc", "Evaluating", 3, log)
    next(items)
    items.close()
    assert log.getvalue() == ""
