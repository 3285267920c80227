"""Refusals of weight files, and the memory that a file may use."""

from __future__ import annotations

_FREE_BYTES = 256 * 2**20
_GROWTH = 16


class Refusal(Exception):
    """The reason why a file is not read and what to do, as half a sentence without its name.

    `tensor_files.read_tensors` converts it to a UserError with the file's name.
    """


def damaged(detail: str) -> Refusal:
    """Makes the refusal of an inconsistent file, for the caller to raise."""
    return Refusal(f"it is damaged or truncated ({detail}): download or save it again")


def shown(name: object) -> str:
    """Formats a name from a file for a message: on one line, quoted and of limited length."""
    text = repr(name) if isinstance(name, str | bytes | int) else type(name).__name__
    return text if len(text) <= 90 else f"{text[:80]}...{text[-1]}"


class Budget:
    """The memory that the content of one file may use.

    Half-precision numbers double, compressed ones grow several times and shared ones are copied,
    but a few bytes that expand to gigabytes are an attack or a mistake.
    """

    def __init__(self, file_bytes: int):
        self._left = _FREE_BYTES + _GROWTH * file_bytes

    def charge(self, num_bytes: int) -> None:
        """Reserves bytes before they are allocated.

        Raises:
            Refusal: a file of this size may not use so much memory.
        """
        self._left -= num_bytes
        if self._left < 0:
            raise Refusal(
                "it would need far more memory than weights of its size: the file is unsafe or "
                "damaged, get the weights from another source"
            )
