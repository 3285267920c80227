"""Starts the workers of a cluster as processes of this machine."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]


def free_ports(count):
    """Numbers of ports that nobody uses at the moment."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Worker:
    """A worker that runs, with its output in files, which cannot fill up as pipes do."""

    def __init__(self, arguments, environment):
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=self._output,
            stderr=self._errors,
        )

    def finish(self, timeout=300) -> tuple[int, str, str]:
        """Waits for its end, and returns its status, output and errors; kills it if it is late."""
        try:
            status = self.process.wait(timeout)
        finally:
            self.process.kill()
        texts = []
        for file in (self._output, self._errors):
            file.seek(0)
            texts.append(file.read())
        return status, *texts


def start_workers(arguments, num_workers, **environment) -> list[Worker]:
    """Runs Python with the same arguments in every worker; the first one is the chief."""
    addresses = [f"localhost:{port}" for port in free_ports(num_workers)]
    jobs = {"worker": addresses}
    return [
        Worker(
            arguments,
            {
                "TF_CONFIG": json.dumps(
                    {"cluster": jobs, "task": {"type": "worker", "index": index}}
                ),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                **environment,
            },
        )
        for index in range(num_workers)
    ]
