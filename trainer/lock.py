"""Allows one training at a time in a model_dir.

On a local disk it is a lock of the operating system, which is released whenever the process ends.
Elsewhere (gs://, or a disk without locks) it is a file with an expiry time: a lease, which the
training renews and which others respect until it expires.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from data import files
from data.errors import UserError

LEASE_SECONDS = 120.0
_RENEWALS_IN_A_LEASE = 4
# By then, two trainings that started together have both written their lease.
_SECONDS_TO_SETTLE = 1.0


@contextlib.contextmanager
def exclusive_training(model_dir: str) -> Iterator[None]:
    """Holds the model_dir for this process's training; evaluations do not need it.

    Raises:
        UserError: another training is using it.
    """
    if files.has_scheme(model_dir):
        with _lease(model_dir):
            yield
        return
    with files.open_file(os.path.join(model_dir, "lock"), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(model_dir, _read(file.name)) from None
        except OSError:  # a file system without locks
            with _lease(model_dir):
                yield
            return
        file.truncate(0)
        json.dump(_holder(), file)
        file.flush()
        yield
        file.truncate(0)


@contextlib.contextmanager
def _lease(model_dir: str) -> Iterator[None]:
    path = os.path.join(model_dir, "lease.json")
    _wait_until_free(model_dir, path)
    token = uuid.uuid4().hex
    _write(path, token)
    time.sleep(_SECONDS_TO_SETTLE)
    if _read(path).get("token") != token:
        raise _refusal(model_dir, _read(path))
    over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(path, token, over), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        over.set()
        renewal.join()
        with contextlib.suppress(OSError):
            files.remove(path)


def _wait_until_free(model_dir: str, path: str) -> None:
    """Waits until the lease of a training that may have died expires; raises if it is renewed."""
    first = _read(path)
    if first.get("until", 0.0) <= time.time() or _died_here(first):
        return
    print(
        f"A training on {first.get('host')} was using --model_dir={model_dir} a moment ago; "
        f"waiting {first['until'] - time.time():.0f} s to see whether it is still running.",
        file=sys.stderr,
        flush=True,
    )
    while (held := _read(path)).get("until", 0.0) > time.time():
        if held["until"] != first["until"]:
            raise _refusal(model_dir, held)
        time.sleep(min(1.0, LEASE_SECONDS / 20))


def _died_here(holder: dict) -> bool:
    """Whether the holder was a process on this machine that has ended."""
    if holder.get("host") != socket.gethostname() or holder.get("process") == os.getpid():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except (KeyError, ValueError, OSError):
        pass
    return False


def _renew(path: str, token: str, over: threading.Event) -> None:
    while not over.wait(LEASE_SECONDS / _RENEWALS_IN_A_LEASE):
        found = _read(path).get("token", token)
        if found != token:
            print(
                f"error: another training has taken over {os.path.dirname(path)}, because this "
                "one could not renew its lease in time; it stops without saving.",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)
        with contextlib.suppress(OSError):
            _write(path, token)


def _write(path: str, token: str) -> None:
    with files.whole_file(path) as file:
        json.dump({**_holder(), "token": token, "until": time.time() + LEASE_SECONDS}, file)


def _read(path: str) -> dict:
    try:
        with files.open_file(path) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _holder() -> dict:
    return {"host": socket.gethostname(), "process": os.getpid()}


def _refusal(model_dir: str, holder: dict) -> UserError:
    who = f" (process {holder['process']} on {holder['host']})" if "process" in holder else ""
    return UserError(
        f"Another training{who} is using --model_dir={model_dir}: wait for it to end, or choose "
        "another folder."
    )
