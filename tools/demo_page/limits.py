"""What the server accepts, and how many requests it works on at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.exceptions import HTTPException

Result = TypeVar("Result")
_RETRY = {"Retry-After": "5"}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
        upload_bytes: size of a request's body.
        pixels: pixels of a picture, compared with its header before it is decoded.
        seconds: time for an upload, and again for waiting and detection.
        places: requests that are uploaded, wait or are worked on at the same time.
    """

    upload_bytes: int = 32 * 2**20
    pixels: int = 50_000_000
    seconds: float = 60.0
    places: int = 16


class Queue:
    """Does one job after another in a thread, for a limited number of requests.

    It belongs to one event loop.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._free = limits.places
        self._thread = ThreadPoolExecutor(1, "detection")
        self._turn = asyncio.Lock()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place for one request.

        Raises:
            HTTPException: 503, all places are taken.
        """
        if not self._free:
            raise HTTPException(
                503,
                f"All {self._limits.places} places of the queue are taken; try again in a few "
                f"seconds.",
                _RETRY,
            )
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def do(self, job: Callable[[], Result]) -> Result:
        """Waits for its turn and does the job.

        Raises:
            HTTPException: 503, it took too long. A job that has begun ends before the next begins.
        """
        seconds = self._limits.seconds
        try:
            return await asyncio.wait_for(self._in_turn(job), seconds)
        except asyncio.TimeoutError:
            raise HTTPException(
                503,
                f"The detection was not ready after {seconds:g} seconds; try again later, or with "
                f"a smaller picture.",
                _RETRY,
            ) from None

    async def _in_turn(self, job: Callable[[], Result]) -> Result:
        await self._turn.acquire()
        loop = asyncio.get_running_loop()

        def end_turn(_) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(self._turn.release)

        running = self._thread.submit(job)
        # Not when the request gives up: the thread would still be busy.
        running.add_done_callback(end_turn)
        return await asyncio.wrap_future(running)
