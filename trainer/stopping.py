"""Lets Ctrl-C, SIGTERM and SIGHUP stop a training after saving it.

Python runs signal handlers between its own instructions, and a step may be one instruction of a
minute. So a thread receives signals from the interpreter's wake-up pipe and reacts at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Exit status that shells give to a program ended by Ctrl-C.
_EXIT_OF_INTERRUPTED = 130


class Stopped(Exception):
    """A training was stopped by request; the message says what was saved."""


class StopSignals:
    """Context in which those signals set `requested` instead of ending the process.

    A second Ctrl-C ends the process at once, with exit status 130. Outside the main thread, where
    signals cannot be handled, the context does nothing.

    Attributes:
        requested: name of the first signal, "" if there was none.
    """

    def __init__(self):
        self.requested = ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._previous_wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        # The interpreter writes to the pipe only if there is a Python handler.
        self._previous = {number: signal.signal(number, _do_nothing) for number in _SIGNALS}
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._writing)
        self._watcher.join()
        os.close(self._reading)

    def _watch(self) -> None:
        interrupts = 0
        while numbers := os.read(self._reading, 1):
            if numbers[0] not in _SIGNALS:
                continue
            interrupts += numbers[0] == signal.SIGINT
            if interrupts > 1:
                os._exit(_EXIT_OF_INTERRUPTED)
            if not self.requested:
                self.requested = signal.Signals(numbers[0]).name
                print(
                    f"{self.requested}: finishing and saving the current step; press Ctrl-C twice "
                    "to exit immediately.",
                    file=sys.stderr,
                    flush=True,
                )


def _do_nothing(number, frame) -> None:
    """Handles signals by doing nothing; `StopSignals` reads them from the pipe."""
