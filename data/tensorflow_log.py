"""TensorFlow's own messages: kept back, because what matters of them is said in sentences here."""

from __future__ import annotations

import logging
import os

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def quieten_tensorflow() -> None:
    """Silences TensorFlow's log; call it before TensorFlow is imported.

    What it raises still comes through. Who sets TF_CPP_MIN_LOG_LEVEL (0 shows everything) has asked
    for the log and gets it.
    """
    if _LEVEL not in os.environ:
        os.environ[_LEVEL] = "3"
        for name in ("tensorflow", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)
