"""The command: what it refuses, where it listens, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError
from tools.demo import listen, main

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "trainer"))
from small_model import photograph, save  # noqa: E402


def run(*arguments):
    return main(["demo", *map(str, arguments)])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((), "--model is not set"),
        (("--model=m", "--port=70000"), "--port"),
        (("--model=m", "--max_seconds=0"), "--max_seconds"),
        (("--model=m", "--prot=1"), "did you mean --port"),
    ],
)
def test_flags_are_checked(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as leaving:
        run(*arguments)
    assert leaving.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "python_multipart"])
def test_a_missing_package_names_the_extra(package, monkeypatch, capsys):
    for name in ("starlette", "uvicorn", "python_multipart"):
        monkeypatch.setitem(sys.modules, name, None if name == package else sys)
    assert run("--model=m") == 1
    said = capsys.readouterr().err
    assert said == (
        f"error: The page needs {package}; install the extra `demo`: pip install "
        "'mask-scoring-rcnn[demo]'.\n"
    )


def test_an_address_that_cannot_be_used_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port={port} cannot be used \(Address already"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="--host=nowhere.invalid"):
        listen("nowhere.invalid", 0)


def test_browsers_may_use_the_names_that_the_server_has():
    pytest.importorskip("starlette", reason="needs the extra `demo`")
    from tools.demo import choose_hosts

    local = ["127.0.0.1", "localhost", "[::1]"]
    assert choose_hosts("127.0.0.1", []) == [*local, "127.0.0.1"]
    assert choose_hosts("::1", ["demo.example"]) == [*local, "[::1]", "demo.example"]
    assert choose_hosts("0.0.0.0", []) == [*local, socket.gethostname()]


def test_no_model_is_one_sentence(tmp_path, capsys):
    pytest.importorskip("uvicorn", reason="needs the extra `demo`")
    pytest.importorskip("python_multipart", reason="needs the extra `demo`")
    assert run(f"--model={tmp_path}", "--port=0") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: There is no trained model in") and said.count("\n") == 1


def test_it_serves_until_it_is_interrupted(small_model, tmp_path):
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn", reason="needs the extra `demo`")
    pytest.importorskip("python_multipart", reason="needs the extra `demo`")
    picture = save(tmp_path, "street.png", photograph())
    server = subprocess.Popen(
        [sys.executable, "tools/demo.py", f"--model={small_model}", "--port=0",
         "--score_threshold=0"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with server:
        line = server.stdout.readline()
        assert line.startswith("The page is at http://127.0.0.1:"), server.stderr.read()
        url = line.split()[4]
        headers = {"Content-Type": "image/png"}
        answer = httpx.post(f"{url}predict", content=picture.read_bytes(), headers=headers)
        assert answer.status_code == 200 and len(answer.json()["detections"]) == 6
        assert "Mask Scoring R-CNN" in httpx.get(url).text
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=60)[1]
    assert server.returncode == 0 and said == ""
