"""The server of the page and of POST /predict, as a Starlette application."""

from __future__ import annotations

import json
import pkgutil
import sys
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data.images import InvalidImage
from data.photographs import decode_photograph
from tools.demo_page.answers import MASKS, RLE, describe_detections, describe_model
from tools.demo_page.limits import Limits, Queue
from tools.demo_page.uploads import read_upload

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/outlines.js": ("outlines.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(predictor, limits: Limits, allowed_hosts: Sequence[str] = LOCAL_HOSTS) -> Starlette:
    """Makes the application.

    Args:
        predictor: `msrcnn.Predictor`.
        limits: what it accepts.
        allowed_hosts: values of the Host header, without a port. Others are refused, so that no
            other website reaches the server under a name of its own (DNS rebinding).
    """
    queue = Queue(limits)

    def detect(encoded: bytes, masks: frozenset[str]) -> bytes:
        try:
            pixels = decode_photograph(encoded, predictor.params.data.exif)
        except InvalidImage as error:
            raise HTTPException(400, f"This cannot be read as a picture: {error}.") from None
        try:
            return describe_detections(predictor(pixels), masks)
        except Exception as error:  # the server goes on
            print(f"error: a detection failed ({type(error).__name__}: {error}).", file=sys.stderr)
            raise HTTPException(500, "The model failed; the server's output says why.") from None

    async def predict(request: Request) -> Response:
        _refuse_other_sites(request)
        masks = _masks_of(request)
        with queue.place():
            encoded = await read_upload(request, limits)
            return _json(await queue.do(lambda: detect(encoded, masks)))

    async def model(request: Request) -> Response:
        return _json(describe_model(predictor, limits))

    return Starlette(
        routes=[
            Route("/predict", predict, methods=["POST"]),
            Route("/model", model),
            *(Route(path, _file(*file)) for path, file in _FILES.items()),
        ],
        middleware=[
            Middleware(_SecurityHeaders),
            Middleware(
                TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False
            ),
        ],
        exception_handlers={HTTPException: _refuse},
    )


def _file(name: str, media_type: str):
    content = pkgutil.get_data(__package__, name)

    async def respond(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return respond


def _masks_of(request: Request) -> frozenset[str]:
    """The kinds of masks that a request asks for, such as ?masks=rle,probabilities."""
    if unknown := request.query_params.keys() - {"masks"}:
        raise HTTPException(400, f"There is no parameter {min(unknown)}; “masks” is the only one.")
    asked = request.query_params.get("masks", RLE)
    if not set(asked.split(",")) <= set(MASKS):
        raise HTTPException(400, f"masks={asked}: expected {' or '.join(MASKS)}.")
    return frozenset(asked.split(","))


def _refuse_other_sites(request: Request) -> None:
    """Refuses pictures that a page of another website sends through a visitor's browser."""
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise HTTPException(403, "Pages of other websites cannot send pictures here.")


def _json(content: bytes, status: int = 200, headers: dict | None = None) -> Response:
    return Response(content, status, headers, "application/json")


async def _refuse(request: Request, error: HTTPException) -> Response:
    sentences = {
        404: f"There is nothing at {request.url.path}: the page is at /, the model's description "
        f"at /model, and pictures are sent to /predict.",
        405: f"{request.method} is not possible at {request.url.path}.",
    }
    sentence = sentences.get(error.status_code, error.detail)
    return _json(json.dumps({"error": sentence}).encode(), error.status_code, error.headers)


class _SecurityHeaders:
    """Adds the same headers to every response."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)
