"""Signals as requests, in processes of their own."""

import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from trainer.stopping import StopSignals

ROOT = pathlib.Path(__file__).parents[2]
# A step that one instruction takes: nothing of Python runs before it is over.
PROGRAM = """
import hashlib
from trainer.stopping import StopSignals
with StopSignals() as signals:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 5_000_000)
    print("requested", signals.requested, flush=True)
"""


@pytest.fixture
def process():
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout.readline() == "ready\n"
    yield program
    program.kill()
    program.wait()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_answered_at_once_and_the_step_is_finished(process, name):
    process.send_signal(getattr(signal, name))
    assert process.stderr.readline().startswith(f"{name}: finishing and saving the current step")
    out, _ = process.communicate(timeout=30)
    assert out == f"requested {name}\n"
    assert process.returncode == 0


def test_ctrl_c_twice_leaves_at_once(process):
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""


def test_ctrl_c_after_another_signal_is_the_first(process):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out == "requested SIGTERM\n"


def test_other_threads_are_left_alone():
    def enter():
        with StopSignals() as signals:
            found.append(signals.requested)

    found = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [""]
