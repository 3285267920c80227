"""Starts a dispatcher or worker of a tf.data service that prepares images for training.

    python tools/data_service.py --role=dispatcher --port=5050
    python tools/data_service.py --role=worker --port=5051 --dispatcher=HOST:5050   # on each host
    python -m trainer.main ... --data_service=grpc://HOST:5050

Each runs until it is interrupted. The records must have the same paths on the workers' hosts. The
traffic is neither encrypted nor authenticated, so open the ports to trusted hosts only.

If a worker dies, start it again with the same host and port. Training continues with the other
workers in the meantime. Evaluation cannot be complete without it: after ten seconds without images
it says which worker does not answer, and after two more minutes it fails. If the worker is back by
then, evaluation fails only if images were lost. After a failure, run the same command again.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Sequence

from data.errors import UserError
from data.tensorflow_log import quieten_tensorflow


def start_server(role: str, port: int, dispatcher: str = "", host: str = ""):
    """Starts a dispatcher or a worker in this process.

    Args:
        role: "dispatcher" or "worker".
        port: port to listen at; 0 picks a free one.
        dispatcher: HOST:PORT of the dispatcher, for a worker.
        host: name under which training programs reach a worker; by default this host's name.

    Returns:
        The server; it stops when the object is deleted.

    Raises:
        UserError: the port cannot be used, or the dispatcher does not answer.
    """
    import tensorflow as tf

    from data.data_service import find_workers

    _require_free(port)
    service = tf.data.experimental.service
    if role == "dispatcher":
        return service.DispatchServer(service.DispatcherConfig(port=port, protocol="grpc"))
    find_workers(f"grpc://{dispatcher}")
    return service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=dispatcher,
            worker_address=f"{host or socket.gethostname()}:%port%",
            port=port,
            protocol="grpc",
        )
    )


def _require_free(port: int) -> None:
    """Raises if the port is in use; two servers would silently share it."""
    with socket.socket() as probe:
        # As the server does, so that remains of closed connections do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port={port} cannot be used ({error}); choose another port."
            ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a server until it is interrupted; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--role", required=True, choices=("dispatcher", "worker"))
    parser.add_argument(
        "--port", type=int, default=0, help="Port to listen at; 0 picks a free one."
    )
    parser.add_argument(
        "--dispatcher", default="", help="HOST:PORT of the dispatcher, for a worker."
    )
    parser.add_argument("--host", default="", help="Name under which other hosts reach this one.")
    flags = parser.parse_args(argv)
    if (flags.role == "worker") != bool(flags.dispatcher):
        parser.error("--dispatcher=HOST:PORT is required for a worker, and only for a worker")
    quieten_tensorflow()
    try:
        server = start_server(**vars(flags))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"The {flags.role} runs at {server._address}.", flush=True)
    # Python would handle an interrupt only after join(), which does not return.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    server.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
