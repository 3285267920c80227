"""One training at a time: the lock ends with its process, a lease with its date."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from data import files
from data.errors import UserError
from trainer import lock

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import sys, time
from trainer.lock import exclusive_training
with exclusive_training(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_training_is_refused_until_the_first_is_killed(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"process {other.pid} on .* using --model_dir"),
            lock.exclusive_training(str(tmp_path)),
        ):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with lock.exclusive_training(str(tmp_path)):
        pass
    with lock.exclusive_training(str(tmp_path)):
        pass


@pytest.fixture
def model_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 2.0)
    monkeypatch.setattr(lock, "_SECONDS_TO_SETTLE", 0.1)
    path = f"ram://{tmp_path.name}"
    files.make_folder(path)
    return path


def write_lease(model_dir, seconds, host="elsewhere", process=1):
    lease = {"host": host, "process": process, "token": "x", "until": time.time() + seconds}
    with files.whole_file(f"{model_dir}/lease.json") as file:
        json.dump(lease, file)


def test_a_lease_is_renewed_while_the_training_runs_and_ends_with_it(model_dir):
    with lock.exclusive_training(model_dir):
        first = lock._read(f"{model_dir}/lease.json")
        assert first["process"] == os.getpid()
        time.sleep(1.0)
        assert lock._read(f"{model_dir}/lease.json")["until"] > first["until"]
        with (
            pytest.raises(UserError, match=f"process {os.getpid()} on {socket.gethostname()}"),
            lock.exclusive_training(model_dir),
        ):
            pass
    assert files.list_folder(model_dir) == []


def test_a_lease_that_nobody_renews_runs_out(model_dir, capsys):
    write_lease(model_dir, seconds=1.5)
    started = time.monotonic()
    with lock.exclusive_training(model_dir):
        assert 1.0 < time.monotonic() - started < 10.0
    assert "waiting" in capsys.readouterr().err


def test_a_lease_of_a_process_that_died_here_is_taken_over_at_once(model_dir, capsys):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_lease(model_dir, 60.0, socket.gethostname(), gone.pid)
    with lock.exclusive_training(model_dir):
        assert "waiting" not in capsys.readouterr().err


def test_a_disk_without_locks_has_a_lease(tmp_path, model_dir, monkeypatch):
    def refuse(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.exclusive_training(str(tmp_path)):
        assert (tmp_path / "lease.json").exists()
