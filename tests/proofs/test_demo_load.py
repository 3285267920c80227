"""The server of tools/demo.py under load: every request is answered, and its memory stays flat."""

import io
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import ROOT
from PIL import Image

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="needs the extra `demo`")
pytest.importorskip("python_multipart", reason="needs the extra `demo`")

sys.path.append(str(ROOT / "tests" / "trainer"))
from small_model import make_model_dir, photograph  # noqa: E402

REQUESTS, WARM, CLIENTS = 2000, 200, 8
# Of the memory after the first requests.
GROWTH = 1.05


def resident(pid):
    """Memory of a process, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def pictures():
    """Photographs of two canvases, and every eighth request's file, which is none."""
    for seed, (height, width) in enumerate(((40, 60), (60, 40), (80, 120), (44, 60)) * 2):
        file = io.BytesIO()
        Image.fromarray(photograph(height, width, seed)).save(file, "PNG")
        yield file.getvalue() if seed < 7 else b"Dear Sir or Madam"


@pytest.mark.proof
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_two_thousand_requests_of_eight_clients(tmp_path):
    model = make_model_dir(tmp_path / "run")
    server = subprocess.Popen(
        [sys.executable, "tools/demo.py", f"--model={model}", "--port=0"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with server:
        try:
            url = server.stdout.readline().split()[4]
            files, local = list(pictures()), threading.local()

            def send(number):
                if not hasattr(local, "client"):
                    local.client = httpx.Client(base_url=url, timeout=120)
                headers = {"Content-Type": "image/png"}
                content = files[number % len(files)]
                answer = local.client.post("/predict", content=content, headers=headers)
                return number % len(files), answer.status_code, answer.content

            with ThreadPoolExecutor(CLIENTS) as clients:
                answers = list(clients.map(send, range(WARM)))
                before = resident(server.pid)
                answers += clients.map(send, range(WARM, REQUESTS))
            after = resident(server.pid)
        finally:
            server.send_signal(signal.SIGINT)
    print(f"memory after {WARM} requests: {before:.0f} MB, after {REQUESTS}: {after:.0f} MB")
    assert len(answers) == REQUESTS
    # A file has one answer, whoever else is served at the same time.
    assert len(set(answers)) == len(files)
    assert sorted(status for _, status, _ in set(answers)) == [200] * 7 + [400]
    assert after < GROWTH * before
