"""Starts the servers of a tf.data service as processes of this machine."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]

# Runs each command line that it reads in a process of its own; TensorFlow is imported once.
COMMANDS = """
import os, runpy, sys
import tensorflow
for line in sys.stdin:
    if not os.fork():
        print(os.getpid(), flush=True)
        sys.argv = line.split()
        runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Server(NamedTuple):
    address: str
    process_id: int


@contextlib.contextmanager
def running_servers():
    """Gives a function that starts a server, as `tools/data_service.py` does with these arguments.

    A server in this process would stop reluctantly, after as long as the input it made has run.
    """
    program = subprocess.Popen(
        [sys.executable, "-c", COMMANDS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )

    def start(*arguments):
        print("tools/data_service.py --host=localhost", *arguments, file=program.stdin, flush=True)
        process_id = int(program.stdout.readline())
        address = re.search(r"runs at (\S+)\.$", program.stdout.readline())[1]
        return Server(address.replace("0.0.0.0", "localhost"), process_id)

    try:
        yield start
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def start_service(start):
    """A dispatcher and two workers."""
    dispatcher = start("--role=dispatcher")
    of_dispatcher = f"--dispatcher={dispatcher.address}"
    return dispatcher, [start("--role=worker", of_dispatcher) for _ in range(2)]
