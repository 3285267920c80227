"""Why a weight file is refused, and how much memory one may ask for."""

from __future__ import annotations

_FREE_BYTES = 256 * 2**20
_GROWTH = 16


class Refusal(Exception):
    """A file that is not read: half a sentence with the cause and what to do, without the name.

    `tensor_files.read_tensors` makes a UserError of it, as it alone knows the file's name.
    """


def damaged(detail: str) -> Refusal:
    """The refusal of a file whose parts do not fit together, for the caller to raise."""
    return Refusal(f"it is damaged or cut short ({detail}): download or save it again")


def shown(name: object) -> str:
    """A name out of a file as a message may print it: on one line, in quotes, not too long."""
    text = repr(name) if isinstance(name, str | bytes | int) else type(name).__name__
    return text if len(text) <= 90 else f"{text[:80]}...{text[-1]}"


class Budget:
    """The memory that the content of one file may take.

    Half-precision numbers double, compressed ones grow several times and shared ones are copied,
    but a few bytes that stand for gigabytes are an attack or an accident.
    """

    def __init__(self, file_bytes: int):
        self._left = _FREE_BYTES + _GROWTH * file_bytes

    def charge(self, num_bytes: int) -> None:
        """Takes bytes, before they are allocated.

        Raises:
            Refusal: nothing is left of what a file of this size may need.
        """
        self._left -= num_bytes
        if self._left < 0:
            raise Refusal(
                "it is small but unfolds to far more memory than weights of its size need: "
                "the file is unsafe or damaged, get the weights from another source"
            )
