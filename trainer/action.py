"""What a training does besides steps, such as saving, and when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Action:
    """Something to do after a number of steps or minutes (0: never), and after the last step."""

    def __init__(self, run: Callable[[int], None], every_steps: int, every_minutes: float = 0.0):
        self._run = run
        self._every_steps = every_steps
        self._every_seconds = 60.0 * every_minutes or math.inf
        self._ran_at = time.monotonic()

    def is_due(self, step: int, last: int, taken: int = 1) -> bool:
        """Whether to run after `step`, the end of `taken` steps; `last` is the final step."""
        late = time.monotonic() - self._ran_at >= self._every_seconds
        return step % self._every_steps < taken or step == last or late

    def run(self, step: int) -> None:
        """Runs, and restarts counting the minutes."""
        self._run(step)
        self._ran_at = time.monotonic()
