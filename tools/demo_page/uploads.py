"""Reads the picture of a request, within the limits."""

from __future__ import annotations

import asyncio

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from data.images import InvalidImage, stated_size
from tools.demo_page.limits import Limits

_FIELD = "image"
_PICTURES = ("image/jpeg", "image/png")
_FORM = "multipart/form-data"


async def read_upload(request: Request, limits: Limits) -> bytes:
    """Returns the picture file in a request: its body, or the field `image` of a form.

    Raises:
        HTTPException: 4xx with a sentence: the request has no such file, is too large or too slow,
            or the file is not a picture within the limits.
    """
    try:
        encoded = await asyncio.wait_for(_read(request, limits.upload_bytes), limits.seconds)
    except asyncio.TimeoutError:
        raise HTTPException(
            408, f"The upload took longer than {limits.seconds:g} seconds."
        ) from None
    except ClientDisconnect:
        raise HTTPException(400, "The upload ended early.") from None
    try:
        height, width = stated_size(encoded)
    except InvalidImage as error:
        raise HTTPException(400, f"This cannot be read as a picture: {error}.") from None
    if height * width > limits.pixels:
        raise HTTPException(
            413,
            f"The picture has {width} × {height} pixels, more than the {limits.pixels:,} that this "
            f"server accepts; scale it down.",
        )
    return encoded


async def _read(request: Request, most: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    request = _limited(request, most)
    if media_type in _PICTURES:
        return await request.body()
    if media_type != _FORM:
        raise HTTPException(
            415,
            f"Send a picture as {' or '.join(_PICTURES)}, or as the field “{_FIELD}” of "
            f"{_FORM}, not as {media_type or 'a body without Content-Type'}.",
        )
    async with request.form(max_files=1, max_fields=8) as form:
        file = form.get(_FIELD)
        if not isinstance(file, UploadFile):
            raise HTTPException(400, f"The form has no file in the field “{_FIELD}”.")
        return await file.read()


def _limited(request: Request, most: int) -> Request:
    """The same request, which refuses to be read further than `most` bytes."""
    left = most

    async def receive() -> Message:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_large(most)
        return message

    return Request(request.scope, receive)


def _too_large(most: int) -> HTTPException:
    return HTTPException(
        413, f"The request is larger than the {most / 2**20:.3g} MB that this server accepts."
    )
