"""Reads Keras weights in a separate process, because the HDF5 library trusts its files.

One wrong byte in a file can make the C library below h5py loop forever or crash, neither of which
raises an exception. Here only a process with a time limit is affected.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from model.importers.refusals import Refusal, damaged

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# Time to start Python and h5py on a busy machine, and the speed of a slow disk.
_SECONDS = 60.0
_BYTES_PER_SECOND = 5e6
_PROGRAM = pathlib.Path(__file__).with_name("keras_files.py")


def read_hdf5_apart(path: str) -> dict[str, np.ndarray]:
    """Runs `keras_files` as a program and returns the result of its `read_hdf5`.

    Raises:
        Refusal: as for `read_hdf5`; or the library fails on the file, crashes or does not finish.
    """
    roots = [str(_PROGRAM.parents[__name__.count(".")]), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(
            [sys.executable, str(_PROGRAM), os.path.abspath(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))},
            capture_output=True,
            timeout=_SECONDS + os.path.getsize(path) / _BYTES_PER_SECOND,
        )
    except subprocess.TimeoutExpired as error:
        raise damaged("the HDF5 library did not finish reading it") from error
    answer = io.BytesIO(done.stdout)
    if done.returncode or not done.stdout:
        raise damaged("the HDF5 library failed to read it")
    header = json.loads(answer.readline())
    if "refusal" in header:
        raise Refusal(header["refusal"])
    return {name: np.lib.format.read_array(answer) for name in header["names"]}
