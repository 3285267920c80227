"""What static shapes are for, which decides what operations a graph may have."""

from __future__ import annotations

import enum


class Static(enum.IntEnum):
    """Passed as `static` to whatever builds a part of the graph; a bool is one of the first two.

    Attributes:
        NO: for TensorFlow itself, whose fastest operations may have dynamic shapes.
        XLA: for XLA and TPUs.
        PORTABLE: for other runtimes, such as LiteRT and OpenVINO: without loops.
    """

    NO = 0
    XLA = 1
    PORTABLE = 2
