"""Silences TensorFlow's log messages; this project reports the relevant ones in sentences."""

from __future__ import annotations

import logging
import os

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def quieten_tensorflow() -> None:
    """Silences TensorFlow's log; must be called before TensorFlow is imported.

    Exceptions are not affected. If TF_CPP_MIN_LOG_LEVEL is set (0 shows everything), it is
    respected.
    """
    if _LEVEL not in os.environ:
        os.environ[_LEVEL] = "3"
        for name in ("tensorflow", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)
