"""Runs commands: `gcloud` and `tar`."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator

from data.errors import UserError
from tools.cloud.steps import Command, Step


def run(step: Step) -> bool:
    """Runs a step, whose output the user sees, and returns whether it succeeded."""
    print(f"{step.title} ...", flush=True)
    with contextlib.ExitStack() as stack:
        source = None
        if step.source:
            source = stack.enter_context(_start(step.source, stdout=subprocess.PIPE))
        text = None if step.text is None else step.text.encode()
        given = {"stdin": source.stdout} if source else {"input": text or b""}
        with _program(step.command):
            status = subprocess.run(step.command, **given).returncode
        if source:
            source.stdout.close()  # Otherwise it would write without end after a failure.
            return source.wait() == status == 0
    return status == 0


def require(step: Step) -> None:
    """Runs a step.

    Raises:
        UserError: it failed.
    """
    if not run(step):
        raise UserError(f"This step failed, for the reason above: {step.title}.")


def query(step: Step, apart: bool = False) -> tuple[bool, str, str]:
    """Runs a step and returns whether it succeeded, its output and its error messages.

    Args:
        step: what to run.
        apart: whether Ctrl-C in the terminal does not reach it.
    """
    with _program(step.command):
        done = subprocess.run(
            step.command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=apart,
        )
    return done.returncode == 0, done.stdout, done.stderr


def read_lines(step: Step, use: Callable[[str], None]) -> None:
    """Runs a step and passes on each line of its output."""
    with _start(step.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            use(line.decode(errors="replace").rstrip("\n"))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into KeyboardInterrupt, as Ctrl-C does, also in the background."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _start(command: Command, **options) -> Iterator[subprocess.Popen]:
    with _program(command), subprocess.Popen(command, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


@contextlib.contextmanager
def _program(command: Command) -> Iterator[None]:
    """Explains that a program is missing."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} is not installed, or its folder is not in PATH; for gcloud see "
            "https://cloud.google.com/sdk/docs/install."
        ) from None
