"""Checks of numbers in JSON files; true and false do not count as numbers."""

from __future__ import annotations

import sys


def is_integer(value) -> bool:
    """Whether a JSON value is an integer of at most 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_finite_number(value) -> bool:
    """Whether a JSON value is a number other than NaN and the infinities."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max
