"""The programs that a benchmark times: each in a process of its own, taking turns.

A program waits between its turns, which begin when all are at rest. So programs with packages that
cannot be installed together are timed seconds apart, each is charged with its own memory alone, and
a machine whose speed drifts is as slow for one as for the other.

Started as a script this is such a process: it is told its `Spec` as JSON, says when it is ready,
and does its work once for each line it reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What runs ahead while it is not asked, and so has finished work in stock when its turn comes.
_STREAMS = ("input", "match", "decode")
# Pipelines go on filling their buffers after a turn, and threads spin before they sleep.
_LOOK_SECONDS = 0.25
_REST_SHARE = 0.1
_LONGEST_REST_SECONDS = 120.0
_FAREWELL_SECONDS = 30.0
OURS = "ours"


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a process is to do.

    Attributes:
      name: `OURS`, or a module of `tools.peers`.
      what: the workload.
      python: the interpreter to run it with.
      argv: our own command line, `OURS` only.
      settings: of the workload; for a peer those of `tools.peers.Settings`.
    """

    name: str
    what: str
    python: str
    argv: tuple[str, ...]
    settings: dict


@dataclasses.dataclass(frozen=True)
class Sample:
    """One timed run of a workload; memory in MB is what the process holds after it."""

    images: int
    wall_seconds: float
    cpu_seconds: float
    rss_mb: float = 0.0

    def value(self, unit: str) -> float:
        """The figure in "images/s", "s/step", "s", "s/image" or "ms/image"."""
        if unit == "images/s":
            return self.images / self.wall_seconds
        if unit in ("s/step", "s"):
            return self.wall_seconds
        return self.wall_seconds / self.images * (1000.0 if unit == "ms/image" else 1.0)


@dataclasses.dataclass
class Result:
    """What became of one contestant.

    Attributes:
      spec: what it was told.
      versions: of the packages it ran with.
      ready_seconds: from the start of the process until it could begin.
      first_seconds: its first run, which does not count.
      samples: the timed runs.
      peak_rss_mb: the most memory its process, or a process that it started, ever held.
    """

    spec: Spec
    versions: dict[str, str]
    ready_seconds: float
    first_seconds: float
    samples: list[Sample] = dataclasses.field(default_factory=list)
    peak_rss_mb: float = 0.0


class ContestantError(Exception):
    """A contestant cannot do its work; the message is one sentence."""


class Contestant:
    """A program in its process.

    Args:
      spec: what to do.
    """

    def __init__(self, spec: Spec):
        self._spec = spec
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (`kill` closes it)
        started = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                [spec.python, os.path.abspath(__file__), json.dumps(dataclasses.asdict(spec))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        except OSError as error:
            raise ContestantError(f"{spec.python} cannot be run: {error.strerror}.") from error
        ready = self._read()
        seconds = time.perf_counter() - started
        self.result = Result(spec, ready["versions"], seconds, self.take_turn().wall_seconds)

    def take_turn(self) -> Sample:
        """Has the work done once."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        return Sample(**self._read())

    def cpu_seconds(self) -> float:
        """Processor time that the process has had so far."""
        with open(f"/proc/{self._process.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Ends the process and notes the memory it had."""
        try:
            self._process.stdin.close()
            self.result.peak_rss_mb = self._read()["peak_rss_mb"]
            # Long enough to remove its files; pipelines do not always let go of their threads.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_FAREWELL_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self.kill()
            raise ContestantError(f"{self._spec.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return f"the process ended: {lines[-1] if lines else 'without a word'}"


def take_turns(specs: Sequence[Spec], repeats: int) -> list[Result]:
    """Times the contestants `repeats` times, one after the other each time.

    Raises:
      ContestantError: one of them cannot do its work.
    """
    with contextlib.ExitStack() as stack:
        contestants = []
        for spec in specs:
            contestants.append(Contestant(spec))
            stack.callback(contestants[-1].kill)
        for _ in range(repeats):
            for contestant in contestants:
                _wait_for_rest(contestants)
                contestant.result.samples.append(contestant.take_turn())
        for contestant in contestants:
            contestant.close()
        return [contestant.result for contestant in contestants]


def _wait_for_rest(contestants: Sequence[Contestant]) -> None:
    """Returns when none of them computes any more."""
    give_up = time.monotonic() + _LONGEST_REST_SECONDS
    used = math.inf
    while used > _REST_SHARE * _LOOK_SECONDS and time.monotonic() < give_up:
        before = sum(contestant.cpu_seconds() for contestant in contestants)
        time.sleep(_LOOK_SECONDS)
        used = sum(contestant.cpu_seconds() for contestant in contestants) - before


def serve(spec: Spec, turns: Iterator[str], answer: Callable[[dict], None]) -> None:
    """The contestant's side: prepares the work, then does it once for each of the turns."""
    try:
        work, packages = _prepare(spec)
    except ImportError as error:
        answer({"error": f"{error}; install it for {spec.python} or leave it out."})
        return
    except Exception as error:
        # One sentence for what the user can mend, the traceback for what is our mistake.
        if type(error).__name__ != "UserError":
            raise
        answer({"error": str(error)})
        return
    answer({"versions": _versions(packages)})
    for _ in turns:
        if spec.what in _STREAMS:
            work()
        wall, cpu = time.perf_counter(), _cpu_seconds()
        images = work()
        sample = Sample(images, time.perf_counter() - wall, _cpu_seconds() - cpu, _rss_mb())
        answer(dataclasses.asdict(sample))
    answer({"peak_rss_mb": _peak_rss_mb()})


def _prepare(spec: Spec) -> tuple[Callable[[], int], Sequence[str]]:
    if spec.name == OURS:
        workloads = importlib.import_module("tools.workloads")
        read_flags = importlib.import_module("trainer.flags").parse_flags_with
        settings = read_flags(["benchmark", *spec.argv], "", workloads.define_flags)
        return workloads.make(spec.what, *settings), workloads.PACKAGES
    peer = importlib.import_module(f"tools.peers.{spec.name}_peer")
    settings = importlib.import_module("tools.peers").Settings.from_json(spec.settings)
    return peer.WORKLOADS[spec.what](settings), peer.PACKAGES


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _cpu_seconds() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def _rss_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def _peak_rss_mb() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in kinds) / 1024.0


def _main() -> None:
    # What the packages print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.insert(0, _ROOT)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    fields = json.loads(sys.argv[1])
    spec = Spec(**{**fields, "argv": tuple(fields["argv"])})
    serve(
        spec,
        iter(sys.stdin.readline, ""),
        lambda text: print(json.dumps(text), file=answers, flush=True),
    )


if __name__ == "__main__":
    # The folder of this script comes first on the path; a peer's package has the name of one here.
    sys.path.pop(0)
    _main()
