"""The fake Google Cloud of each test, with short pauses."""

import pathlib
import shutil
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from fake_google_cloud import TOOLS, FakeGoogleCloud  # noqa: E402

from tools.cloud import tpu_run, vertex_run  # noqa: E402


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A fake Google Cloud, whose `gcloud` is the only one in PATH."""
    if missing := [name for name in TOOLS if not shutil.which(name)]:
        pytest.skip(f"needs the programs {', '.join(missing)}")
    cloud = FakeGoogleCloud(tmp_path / "cloud")
    monkeypatch.setenv("PATH", str(cloud.programs))
    for module in (tpu_run, vertex_run):
        monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    yield cloud
    cloud.stop()
