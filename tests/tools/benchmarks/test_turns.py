"""Programs in their processes: what ends one, what is timed, and when a turn begins."""

import sys

import pytest

from data.errors import UserError
from tools.benchmarks.turns import _wait_for_rest, take_turns
from tools.benchmarks.worker import Job, Sample, serve


def test_a_sample_in_each_unit():
    sample = Sample(images=4, wall_seconds=2.0, cpu_seconds=3.0)
    assert sample.value("images/s") == 2.0
    assert sample.value("s/step") == 2.0
    assert sample.value("s") == 2.0
    assert sample.value("s/image") == 0.5
    assert sample.value("ms/image") == 500.0


def test_what_ends_a_program_is_told():
    job = Job("no_such_peer", "match", sys.executable, (), {})
    with pytest.raises(UserError, match="no_such_peer.*No module named"):
        take_turns([job], 1)


def test_the_stock_of_a_stream_is_not_timed(monkeypatch):
    calls, answers = [], []
    monkeypatch.setattr(
        "tools.benchmarks.worker._prepare", lambda job: (lambda: calls.append(1) or 7, ())
    )
    serve(Job("ours", "input", "python", (), {}), iter(["run\n", "run\n"]), answers.append)
    assert len(calls) == 4
    assert [answer.get("images") for answer in answers] == [None, 7, 7, None]
    assert answers[-1]["peak_rss_mb"] > 1


class Busy:
    """Computes for a while, and then no more."""

    def __init__(self, *cpu_seconds: float):
        self.readings = list(cpu_seconds)

    def cpu_seconds(self) -> float:
        return self.readings.pop(0)


def test_a_turn_begins_when_all_are_at_rest(monkeypatch):
    monkeypatch.setattr("tools.benchmarks.turns._LOOK_SECONDS", 0.01)
    busy, idle = Busy(1.0, 1.5, 2.0, 2.4, 3.0, 3.0, 9.0), Busy(*[7.0] * 7)
    _wait_for_rest([busy, idle])
    assert busy.readings == [9.0]
