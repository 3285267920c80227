"""What all tests share: quiet TensorFlow, and the folder of real data that may be absent."""

import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """Root folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data(repository) -> pathlib.Path:
    """Folder of real data beside the repository; tests that ask for it skip without it."""
    folder = repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data in {folder}, which is absent")
    return folder
