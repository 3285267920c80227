"""What tests share: quiet TensorFlow, a small model with exports, real data that may be absent."""

import fcntl
import os
import pathlib

import hypothesis
import numpy as np
import pytest

# Time says nothing on a machine that does other work.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

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


@pytest.fixture(scope="session")
def make_once(tmp_path_factory):
    """`make_once(name, make)` is a folder that `make(folder)` fills once for all workers of xdist.

    Tests only read it.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # It has a folder for each worker.

    def make_once(name, make) -> pathlib.Path:
        folder = root / name
        with open(root / f"{name}.made", "a+") as made:
            fcntl.flock(made, fcntl.LOCK_EX)
            made.seek(0)
            if not made.read():
                folder.mkdir()
                make(folder)
                made.write("yes")
        return folder

    return make_once


@pytest.fixture(scope="session")
def small_model(make_once) -> pathlib.Path:
    """A model_dir of tests/trainer/small_model.py."""
    from small_model import make_model_dir

    return make_once("small_model", lambda folder: make_model_dir(folder / "run")) / "run"


@pytest.fixture(scope="session")
def small_exports(make_once, small_model) -> pathlib.Path:
    """Exports of `small_model`: saved_model/ and, where its packages are there, openvino/."""
    from small_model import export_all

    return make_once("small_exports", lambda folder: export_all(small_model, folder)) / "export"


@pytest.fixture(scope="session")
def small_tflite(make_once, small_model) -> pathlib.Path:
    """LiteRT files of `small_model`: model_{float32,dynamic,int8}.tflite."""
    from small_model import export_tflite

    return make_once("small_tflite", lambda folder: export_tflite(small_model, folder))


@pytest.fixture(scope="session")
def tied_columns():
    """Finds the columns of a mask in which rounding may decide what a polygon's edge does."""
    return _tied_columns


def _tied_columns(polygons, size: int, slack: float = 0.0) -> np.ndarray:
    """Columns in which an edge meets exactly the middle between two fifths of a cell.

    pycocotools' doubles may fall short of it.

    Args:
        polygons: float64 [V, 2] each, y and x in cells.
        size: M.
        slack: also the columns of edges of which an end is that near to it, in fifths.

    Returns:
        bool [M].
    """
    tied = np.zeros(size, bool)
    for polygon in polygons:
        ends = 5 * polygon + 0.5
        near = (np.abs(ends - np.round(ends)) < slack).any(axis=1)
        corners = np.trunc(ends).astype(int)
        for index, (y1, x1) in enumerate(corners):
            (y2, x2), follows = corners[(index + 1) % len(corners)], near[(index + 1) % len(near)]
            dy, dx = abs(y2 - y1), abs(x2 - x1)
            for column in range(size):
                step = 5 * column + 3 - min(x1, x2)
                if near[index] or follows:
                    tied[column] |= -5 <= step <= dx + 5
                if not 1 <= step <= dx:
                    continue
                if dx >= dy:
                    tied[column] |= any(2 * dy * t % (2 * dx) == dx for t in (step - 1, step))
                else:
                    tied[column] |= (2 * step - 1) * dy % (2 * dx) == 0
    return tied
