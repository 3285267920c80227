"""Serves a page on which a model can be tried with pictures of one's own.

    python tools/demo.py --model=M

and open http://127.0.0.1:8000: the page shows the outlines of the objects in a picture, their
scores, and what ranking by mask score changes. M is a model_dir or an exported model. Programs send
pictures to POST /predict and get JSON. Only this machine reaches the server unless --host says
otherwise. Every setting that changes predictions is a flag here too, such as --score_threshold=0.5.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from data.errors import UserError
from data.tensorflow_log import quieten_tensorflow
from trainer.flags import exit_status, parse_command_line, require_flags

_DESCRIPTION = "python tools/demo.py --model=M"
_OWN = (
    "model", "host", "port", "allowed_hosts", "max_upload_mb", "max_megapixels", "max_seconds",
    "max_requests",
)  # fmt: skip
_CONNECTIONS = 128
_ANY_ADDRESS = ("", "0.0.0.0", "::")


def make_server(predictor, limits, allowed_hosts: Sequence[str]):
    """Makes the server, whose `run(sockets=[...])` ends at SIGINT or SIGTERM.

    Args:
        predictor: `msrcnn.Predictor`.
        limits: `tools.demo_page.limits.Limits`.
        allowed_hosts: as for `tools.demo_page.server.make_app`.
    """
    import uvicorn

    from tools.demo_page.server import make_app

    config = uvicorn.Config(
        make_app(predictor, limits, allowed_hosts),
        access_log=False,
        lifespan="off",
        limit_concurrency=_CONNECTIONS,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address.

    Raises:
        UserError: the address cannot be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        # Browsers wait until the model is loaded.
        listening.listen(_CONNECTIONS)
        return listening
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--host={host} --port={port} cannot be used ({reason}); choose another."
        ) from None


def choose_hosts(host: str, more: Sequence[str]) -> list[str]:
    """Returns the names by which browsers may address the server.

    Args:
        host: address that the server listens at.
        more: further names.
    """
    from tools.demo_page.server import LOCAL_HOSTS

    own = [socket.gethostname()] if host in _ANY_ADDRESS else [f"[{host}]" if ":" in host else host]
    return [*LOCAL_HOSTS, *own, *more]


def _require_packages() -> None:
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"The page needs {error.name}; install the extra `demo`: pip install "
            "'mask-scoring-rcnn[demo]'."
        ) from None


def _define_flags(flag_values: flags.FlagValues) -> None:
    texts = {
        "model": ("", "model_dir of a training, or an exported model."),
        "host": ("127.0.0.1", "Address to listen at; 0.0.0.0 opens the page to other machines."),
    }
    for name, (default, meaning) in texts.items():
        flags.DEFINE_string(name, default, meaning, flag_values=flag_values)
    flags.DEFINE_list(
        "allowed_hosts", [], "Further names or addresses by which browsers reach the server.",
        flag_values=flag_values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "port", 8000, "Port to listen at; 0 picks a free one.", lower_bound=0, upper_bound=65535,
        flag_values=flag_values,
    )  # fmt: skip
    numbers = {
        "max_upload_mb": (32, "Largest upload, MB."),
        "max_megapixels": (50, "Largest picture, millions of pixels."),
        "max_seconds": (60, "Longest time for an upload, and for waiting and detection."),
        "max_requests": (16, "Pictures that are uploaded, wait or are worked on at once."),
    }
    for name, (default, meaning) in numbers.items():
        flags.DEFINE_integer(name, default, meaning, lower_bound=1, flag_values=flag_values)


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    given = {name: command.flag_values[name].value for name in _OWN}
    require_flags(command.flag_values, "model")

    def work() -> int:
        _require_packages()
        from tools.demo_page.limits import Limits

        limits = Limits(
            upload_bytes=given["max_upload_mb"] * 2**20,
            pixels=given["max_megapixels"] * 10**6,
            seconds=given["max_seconds"],
            places=given["max_requests"],
        )
        hosts = choose_hosts(given["host"], given["allowed_hosts"])
        with listen(given["host"], given["port"]) as listening:
            predictor = _load(given["model"], command.given)
            _announce(given["host"], listening.getsockname()[1])
            make_server(predictor, limits, hosts).run(sockets=[listening])
        return 0

    return exit_status(work)


def _load(model: str, settings: dict):
    quieten_tensorflow()
    from trainer.predictor import load

    predictor = load(model, **settings)
    # The first image of a canvas takes longer than the others.
    predictor(np.zeros([*predictor.params.data.canvas_sizes[0], 3], np.uint8))
    return predictor


def _announce(host: str, port: int) -> None:
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(
            f"Warning: --host={host} opens the server to other machines, without a password.",
            file=sys.stderr,
        )
    shown = "127.0.0.1" if host in _ANY_ADDRESS else f"[{host}]" if ":" in host else host
    print(f"The page is at http://{shown}:{port}/ (Ctrl-C stops the server).", flush=True)


def run() -> None:
    """Runs the command line; console entry point."""
    try:
        sys.exit(main(sys.argv))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    run()
