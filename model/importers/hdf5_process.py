"""Reads Keras weights in a process of their own, as the HDF5 library trusts its files.

One wrong byte in a file can send the C library below h5py round in a circle for ever or out of its
memory; neither is an exception. Here it takes a process with it that was given some time.
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
# For the start of Python and h5py on a busy machine; after that, for a slow disk.
_SECONDS = 60.0
_BYTES_PER_SECOND = 5e6
_PROGRAM = pathlib.Path(__file__).with_name("keras_files.py")


def read_hdf5_apart(path: str) -> dict[str, np.ndarray]:
    """What `keras_files.read_hdf5` reads, by `keras_files` as a program.

    Raises:
        Refusal: what that refuses; or the library fails on the file, crashes or does not end.
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
        raise damaged("the HDF5 library does not come to an end with it") from error
    answer = io.BytesIO(done.stdout)
    if done.returncode or not done.stdout:
        raise damaged("the HDF5 library fails on it")
    header = json.loads(answer.readline())
    if "refusal" in header:
        raise Refusal(header["refusal"])
    return {name: np.lib.format.read_array(answer) for name in header["names"]}
