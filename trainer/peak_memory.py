"""The most memory that this process has used so far."""

from __future__ import annotations

import tensorflow as tf

from data import files


def read_peak_memory(status: str = "/proc/self/status") -> float | None:
    """Returns the peak in GB: that of its fullest GPU or, without GPUs, of the process.

    None where it is unknown, as without GPUs on systems other than Linux.

    Args:
        status: file in which Linux describes the process.
    """
    if gpus := tf.config.list_logical_devices("GPU"):
        peaks = [tf.config.experimental.get_memory_info(_short(gpu.name))["peak"] for gpu in gpus]
        return max(peaks) / 1e9
    if not files.exists(status):
        return None
    with files.open_file(status) as file:
        kilobytes = [int(line.split()[1]) for line in file if line.startswith("VmHWM:")]
    return kilobytes[0] * 1024 / 1e9 if kilobytes else None


def _short(name: str) -> str:
    """Returns the end of a device's name, such as GPU:0."""
    return name.rpartition("device:")[2]
