"""A Google Cloud in a folder: a `gcloud` with one TPU VM, which is a folder of this machine.

The VM's scripts really run there. Its `uv` makes a `.venv` whose `python` is a trainer of six
steps with a checkpoint in the bucket. `events.json` says what goes wrong, one event a call.
"""

import json
import os
import pathlib
import shutil
import signal
import sys
import time

TOOLS = (
    *("bash", "cat", "chmod", "cp", "env", "flock", "gzip", "kill"),
    *("mkdir", "nohup", "rm", "setsid", "tail", "tar", "tee", "touch", "true"),
)

GCLOUD = """#!{python} -IS
import json, os, pathlib, shlex, shutil, signal, subprocess, sys
home = pathlib.Path("{home}")
bucket, vm = home / "bucket", home / "vm"
state_file, events_file = home / "state.json", home / "events.json"
state, events = json.loads(state_file.read_text()), json.loads(events_file.read_text())
arguments = sys.argv[1:]
words = [word for word in arguments if not word.startswith("--")]
flags = dict(word.split("=", 1) for word in arguments if word.startswith("--") and "=" in word)
with open(home / "calls.jsonl", "a") as file:
    file.write(json.dumps(arguments) + "\\n")

def save():
    state_file.write_text(json.dumps(state))

def next_event(name):
    found = events.get(name) or [""]
    events[name] = found[1:]
    events_file.write_text(json.dumps(events))
    return found[0]

def fail(message, status=1):
    print("ERROR: (gcloud) " + message, file=sys.stderr)
    sys.exit(status)

def stop_vm():
    pid_file = home / "training.pid"
    if pid_file.exists():
        try:
            os.killpg(int(pid_file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
        pid_file.unlink()
    shutil.rmtree(vm, ignore_errors=True)

def local(url):
    return bucket / url.removeprefix("gs://")

def storage(source, target):
    if next_event("upload"):
        fail("PERMISSION_DENIED: no access to the bucket")
    if source == "-":
        local(target).parent.mkdir(parents=True, exist_ok=True)
        local(target).write_bytes(sys.stdin.buffer.read())
    else:
        for path in local(source).parent.iterdir():
            if path.is_file():
                shutil.copy(path, target)

def create():
    event = next_event("create")
    if event:
        fail(event)
    vm.mkdir()
    state["tpu"] = "READY"
    state["queue"] = next_event("queue") or "ACTIVE"
    save()

def describe(queued):
    if not state["tpu"]:
        fail("NOT_FOUND: Resource was not found")
    if not queued:
        print(json.dumps({{"state": state["tpu"]}}))
        return
    failure = {{"failedData": {{"error": {{"message": "no TPU until the time limit"}}}}}}
    print(json.dumps({{"state": {{"state": state["queue"]}} | failure}}))
    if state["queue"] == "WAITING_FOR_RESOURCES":
        state["queue"] = "ACTIVE"
        save()

def delete():
    if event := next_event("delete"):
        fail(event)
    if not state["tpu"]:
        fail("NOT_FOUND: Resource was not found")
    state["tpu"] = None
    save()
    stop_vm()

def ssh(script):
    if state["tpu"] != "READY":
        fail("no connection", 255)
    following = "follow.sh" in script
    event = next_event("follow" if following else "install")
    if event == "refuse":
        fail("port 22: Connection refused", 255)
    environment = {{"HOME": str(vm), "PATH": os.environ["PATH"]}}
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=vm, env=environment, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        print(line, end="", flush=True)
        if event and line == "step 3\\n":
            os.killpg(process.pid, signal.SIGKILL)
            if event == "preempt":
                stop_vm()
                state["tpu"] = "PREEMPTED"
                save()
            elif event.startswith("SIG"):
                os.kill(os.getppid(), getattr(signal, event))
            (home / "hold").unlink(missing_ok=True)
            fail("connection reset by peer", 255)
    sys.exit(process.wait())

def custom_jobs(verb):
    if verb == "create":
        if event := next_event("create"):
            fail(event)
        state["job"] = json.loads(pathlib.Path(flags["--config"]).read_text())
        save()
        print("projects/1/locations/us-west4/customJobs/7")
    elif verb == "stream-logs":
        print("a line of the log")
        event = next_event("follow")
        if event.startswith("SIG"):
            os.kill(os.getppid(), getattr(signal, event))
    elif verb == "describe":
        print(json.dumps({{"state": next_event("job") or "JOB_STATE_SUCCEEDED"}}))

if words[0] == "storage":
    storage(*words[2:4])
elif words[0] == "ai":
    custom_jobs(words[2])
elif words[3] == "create":
    create()
elif words[3] == "describe":
    describe(words[2] == "queued-resources")
elif words[3] == "delete":
    delete()
elif words[3] == "ssh":
    ssh(flags["--command"])
"""

PYTHON3 = """#!/bin/bash
mkdir -p "$HOME/.local/bin"
cp {home}/uv "$HOME/.local/bin/uv"
"""
UV = """#!/bin/bash
[ "$1" = venv ] && mkdir -p .venv/bin && cp {home}/trainer .venv/bin/python
exit 0
"""
TRAINER = """#!/bin/bash
[ "$1" = -c ] && echo /lib/libtpu.so && exit
tail -n +1 trainer/main.py > /dev/null || exit 3
echo $PPID > {home}/training.pid
printf '%s\\0' "$@" > {home}/arguments
env > {home}/environment
echo started >> {home}/starts
step=$(cat {home}/bucket/step 2> /dev/null || echo 0)
while [ $step -lt 6 ]; do
  step=$((step + 1))
  echo $step > {home}/bucket/step
  echo "step $step"
  while [ $step = 3 ] && [ -e {home}/hold ]; do sleep 0.05; done
done
exit $(cat {home}/trainer_status)
"""
# A long sleep is that before the VM deletes itself.
SLEEP = """#!/bin/bash
[ "$1" = 900 ] && [ ! -e {home}/impatient ] && exec {sleep} 60
exec {sleep} 0.05
"""


class FakeGoogleCloud:
    """The folder, which is also the only one in PATH."""

    def __init__(self, home: pathlib.Path):
        self.home, self.programs = home, home / "programs"
        self.programs.mkdir(parents=True)
        (home / "bucket").mkdir()
        for name in TOOLS:
            (self.programs / name).symlink_to(shutil.which(name))
        values = {"home": home, "python": sys.executable, "sleep": shutil.which("sleep")}
        self._write("programs/gcloud", GCLOUD.format(**values))
        self._write("programs/python3", PYTHON3.format(**values))
        self._write("programs/sleep", SLEEP.format(**values))
        self._write("uv", UV.format(**values))
        self._write("trainer", TRAINER.format(**values))
        (home / "trainer_status").write_text("0")
        (home / "state.json").write_text(json.dumps({"tpu": None, "queue": None}))
        self.plan()

    def _write(self, name: str, text: str) -> None:
        (self.home / name).write_text(text)
        (self.home / name).chmod(0o755)

    def plan(self, **events: list[str]) -> None:
        """Sets what goes wrong; "" is a call in which nothing does."""
        (self.home / "events.json").write_text(json.dumps(events))
        if any(events.get("follow", [])):
            (self.home / "hold").touch()

    @property
    def state(self) -> dict:
        """State of the TPU, or body of the Vertex AI job."""
        return json.loads((self.home / "state.json").read_text())

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of all calls of gcloud."""
        path = self.home / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def count(self, *words: str) -> int:
        """Number of calls that contain all words."""
        return sum(all(any(word in part for part in call) for word in words) for call in self.calls)

    @property
    def trainer_arguments(self) -> list[str]:
        """What the trainer received."""
        return (self.home / "arguments").read_text().split("\0")[:-1]

    @property
    def starts(self) -> int:
        """How often the trainer was started."""
        path = self.home / "starts"
        return len(path.read_text().split()) if path.exists() else 0

    def stop(self) -> None:
        """Ends what is left of the training."""
        path = self.home / "training.pid"
        if path.exists():
            for _ in range(2):
                try:
                    os.killpg(int(path.read_text()), signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    return
                time.sleep(0.1)
