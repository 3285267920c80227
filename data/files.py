"""The file layer: every path that a user gives goes through these functions.

A path with a scheme (gs://, ram://, s3://, …) is opened by TensorFlow, any other by Python, so that
local work needs no TensorFlow. A ~ at the start of a local path means the home folder. All failures
raise OSError, wherever the file is.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import io
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import IO

from data.errors import UserError

Path = str | os.PathLike

# TensorFlow's error codes that correspond to an errno.
_ERRNO_BY_CODE = {
    5: errno.ENOENT,  # NOT_FOUND
    6: errno.EEXIST,  # ALREADY_EXISTS
    7: errno.EACCES,  # PERMISSION_DENIED
    8: errno.ENOSPC,  # RESOURCE_EXHAUSTED
}


def expand(path: Path) -> str:
    """Returns the path as text, with ~ replaced by the home folder."""
    path = os.fspath(path)
    return path if has_scheme(path) else os.path.expanduser(path)


def has_scheme(path: Path) -> bool:
    """Whether a path belongs to TensorFlow's file systems instead of the operating system."""
    return "://" in os.fspath(path)


def open_file(path: Path, mode: str = "r") -> IO:
    """Opens a file: mode "r", "w" or "a" for UTF-8 text, "rb", "wb" or "ab" for bytes.

    Raises:
        OSError: it cannot be opened.
    """
    path = expand(path)
    if not has_scheme(path):
        return open(path, mode, encoding=None if "b" in mode else "utf-8")
    raw = _RemoteFile(path, mode.replace("b", "") + "b")
    buffered = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w", writer: str = "") -> Iterator[IO]:
    """Opens a file that replaces `path` only once it is complete.

    Args:
        path: the file's final path; a file next to it is written, then renamed, or removed after
            an error.
        mode: "w" for UTF-8 text or "wb".
        writer: becomes part of the temporary name, if several may write the file at once.

    Raises:
        OSError: the file cannot be written.
    """
    path = expand(path)
    temporary_path = f"{path}{writer}.tmp"
    try:
        with open_file(temporary_path, mode) as file:
            yield file
        rename(temporary_path, path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(temporary_path)
        raise


def exists(path: Path) -> bool:
    """Whether there is a file or folder."""
    path = expand(path)
    if not has_scheme(path):
        return os.path.exists(path)
    with os_errors(path):
        return _gfile().exists(path) and _is_listed(path)


def is_file(path: Path) -> bool:
    """Whether there is a file."""
    return exists(path) and not is_folder(path)


def is_folder(path: Path) -> bool:
    """Whether there is a folder."""
    path = expand(path)
    if not has_scheme(path):
        return os.path.isdir(path)
    with os_errors(path):
        return _gfile().isdir(path) and _is_listed(path)


def _is_listed(path: str) -> bool:
    """Whether a folder lists the path; on ram://, any prefix of a path would pass for a folder."""
    folder, name = os.path.split(path.rstrip("/"))
    if not path.startswith("ram://") or folder == "ram:":
        return True
    return name in list_folder(folder)


def size(path: Path) -> int:
    """Returns the number of bytes of a file; raises OSError if there is none."""
    path = expand(path)
    if not has_scheme(path):
        return os.stat(path).st_size
    with os_errors(path):
        return _gfile().stat(path).length


def total_size(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    if is_file(path):
        return size(path)
    return sum(total_size(os.path.join(path, name)) for name in list_folder(path))


def state(path: Path) -> tuple[int, ...]:
    """Returns numbers that change when a file is written or replaced; raises OSError if missing."""
    path = expand(path)
    if not has_scheme(path):
        status = os.stat(path)
        # A copy that preserves times sets the second number, but the third cannot be set.
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns
    with os_errors(path):
        status = _gfile().stat(path)
        # On a file system without times, such as ram://, no two states are equal.
        return status.length, status.mtime_nsec or time.time_ns()


def make_folder(path: Path) -> None:
    """Makes a folder and its parents unless it exists; raises OSError if that fails."""
    path = expand(path)
    if not has_scheme(path):
        return os.makedirs(path, exist_ok=True)
    with os_errors(path):
        return _gfile().makedirs(path)


def missing_folders(path: Path) -> list[str]:
    """Lists the folders that `make_folder` would make, the innermost first."""
    folder, missing = expand(path), []
    while folder.rstrip("/:") and not folder.endswith(":") and not exists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder.rstrip("/"))
    return missing


def remove_empty_folders(paths: Iterable[Path]) -> None:
    """Removes the folders that exist and are empty, in order."""
    for path in map(expand, paths):
        with contextlib.suppress(OSError):
            if not has_scheme(path):
                os.rmdir(path)
            elif not list_folder(path):
                remove_folder(path)


def require_writable(folder: Path, flag: str) -> None:
    """Makes a folder unless it exists, and checks that files can be written to it.

    Args:
        folder: the folder; nothing is left in it.
        flag: name of the flag that named it, for the message.

    Raises:
        UserError: it cannot be made, or no file can be written to it.
    """
    try:
        make_folder(folder)
        probe(folder)
    except OSError as error:
        raise UserError(
            f"--{flag}={folder} cannot be written to ({error.strerror or error}); free disk "
            "space, or choose another folder."
        ) from None


def probe(folder: Path) -> None:
    """Writes a file to a folder and removes it; raises OSError if that fails."""
    folder = expand(folder)
    if has_scheme(folder):
        path = f"{folder}/{uuid.uuid4().hex}.tmp"
        with open_file(path, "wb") as file:
            file.write(b"?")
        remove(path)
    else:
        # Where the system supports it, the file has no name, so that not even a kill leaves it
        # behind.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")


def list_folder(path: Path) -> list[str]:
    """Lists the names in a folder, in order; raises OSError if there is no such folder."""
    path = expand(path)
    if not has_scheme(path):
        return sorted(os.listdir(path))
    with os_errors(path):
        return sorted(name.rstrip("/") for name in _gfile().listdir(path))


def glob(pattern: str) -> list[str]:
    """Lists the files and folders that a pattern matches, in order; raises OSError.

    *, ? and [...] match parts of a name, but neither a leading dot nor a slash. A pattern that is
    itself the path of an existing file is taken literally.
    """
    root, names = re.fullmatch(r"((?:[^/]*://[^/]*)?/*)(.*)", expand(pattern)).groups()
    paths = [root]
    for name in filter(None, names.split("/")):
        paths = [match for path in paths for match in _matches(path, name)]
    return sorted(path for path in paths if path)


def _matches(folder: str, pattern: str) -> list[str]:
    if exists(path := os.path.join(folder, pattern)):
        return [path]
    if not (re.search(r"[*?[]", pattern) and is_folder(folder or ".")):
        return []
    return [
        os.path.join(folder, name)
        for name in list_folder(folder or ".")
        if fnmatch.fnmatchcase(name, pattern) and name.startswith(".") <= pattern.startswith(".")
    ]


def rename(path: Path, target: Path) -> None:
    """Moves a file within a file system, replacing any file at the new path."""
    path, target = expand(path), expand(target)
    if not has_scheme(path):
        return os.replace(path, target)
    with os_errors(path):
        return _gfile().rename(path, target, overwrite=True)


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[str]:
    """Gives a local path of a file, for libraries that open files themselves; raises OSError."""
    path = expand(path)
    if not has_scheme(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, os.path.basename(path))
        with open_file(path, "rb") as source, open(copy, "wb") as target:
            shutil.copyfileobj(source, target)
        yield copy


def remove(path: Path) -> None:
    """Removes a file; raises OSError if there is none."""
    path = expand(path)
    if not has_scheme(path):
        return os.remove(path)
    with os_errors(path):
        return _gfile().remove(path)


def remove_folder(path: Path) -> None:
    """Removes a folder and its content; raises OSError if there is none."""
    path = expand(path)
    if not has_scheme(path):
        return shutil.rmtree(path)
    with os_errors(path):
        return _gfile().rmtree(path)


class _RemoteFile(io.RawIOBase):
    """A file of TensorFlow's file systems with the interface of Python's io."""

    def __init__(self, path: str, mode: str):
        super().__init__()
        self._path = path
        self._file = _gfile().GFile(path, mode)
        self._reads = "r" in mode
        with os_errors(path):
            # GFile opens its file on first use.
            self._file.size() if self._reads else self._file.write(b"")

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return not self._reads

    def seekable(self) -> bool:
        return self._reads

    def readinto(self, buffer) -> int:
        with os_errors(self._path):
            block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def write(self, block) -> int:
        with os_errors(self._path):
            self._file.write(bytes(block))
        return len(block)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with os_errors(self._path):
            self._file.seek(offset, whence)
            return self._file.tell()

    def tell(self) -> int:
        with os_errors(self._path):
            return self._file.tell()

    def flush(self) -> None:
        if not self.closed and not self._reads:
            with os_errors(self._path):
                self._file.flush()

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                with os_errors(self._path):
                    self._file.close()


@contextlib.contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Converts TensorFlow's errors about reading or writing a path to OSError."""
    from tensorflow import errors

    try:
        yield
    except errors.OpError as error:
        number = _ERRNO_BY_CODE.get(error.error_code, errno.EIO)
        known = error.error_code in _ERRNO_BY_CODE or not error.message
        reason = os.strerror(number) if known else error.message
        raise OSError(number, reason, os.fspath(path)) from None


def _gfile():
    """TensorFlow's file access, imported only for paths that Python cannot open."""
    from tensorflow.io import gfile

    return gfile
