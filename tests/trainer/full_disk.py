"""A file system of a few kilobytes, which is soon full."""

import contextlib
import os
import subprocess

import pytest

# What Linux writes at a time.
PAGE = 4096


@contextlib.contextmanager
def small_disk(folder, size):
    """Mounts a file system of `size` bytes on a folder that it makes; skips the test without it."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder, num_free):
    """Fills the file system of the folder but for some pages."""
    status = os.statvfs(folder)
    path = folder / "filler"
    path.write_bytes(bytes(status.f_bavail * status.f_frsize - num_free * PAGE))
    try:
        yield
    finally:
        path.unlink()
