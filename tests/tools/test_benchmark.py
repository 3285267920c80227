"""The benchmark: its arithmetic, its refusals, and whole measurements in processes."""

import json
import sys

import numpy as np
import pytest

from tools import stand_ins, workloads
from tools.benchmark import PEERS, main, summarise
from tools.contestants import (
    ContestantError,
    Result,
    Sample,
    Spec,
    _wait_for_rest,
    serve,
    take_turns,
)


def make_result(name: str, *seconds: float, **settings) -> Result:
    spec = Spec(name, "predict", "python", (), settings)
    samples = [Sample(2, wall, wall / 2) for wall in seconds]
    return Result(spec, {"numpy": "2"}, 3.0, 4.0, samples, peak_rss_mb=100.0)


def test_a_sample_in_each_unit():
    sample = Sample(images=4, wall_seconds=2.0, cpu_seconds=3.0)
    assert sample.value("images/s") == 2.0
    assert sample.value("s/step") == 2.0
    assert sample.value("s") == 2.0
    assert sample.value("s/image") == 0.5
    assert sample.value("ms/image") == 500.0


def test_the_summary_quotes_the_median():
    (entry,) = summarise("predict", [make_result("ours", 3.0, 1.0, 2.0)])["contestants"]
    assert (entry["median"], entry["min"], entry["max"]) == (1.0, 0.5, 1.5)
    assert entry["values"] == [1.5, 0.5, 1.0]
    assert entry["cpu_ms_per_image"] == 500.0
    assert entry["peak_rss_mb"] == 100.0


def test_ratios_are_of_pairs():
    # The machine is twice as slow in the second turn, for both.
    results = [make_result("ours", 1.0, 2.0, 3.0), make_result("torchvision", 2.0, 4.0, 2.0)]
    figures = summarise("predict", results)
    assert figures["ratios"] == {"torchvision": {"median": 0.5, "min": 0.5, "max": 1.5}}
    assert figures["unit"] == "s/image"


def test_a_sweep_has_no_ratios():
    results = [make_result("ours", 1.0, image_size=64), make_result("ours", 2.0, image_size=96)]
    figures = summarise("predict", results, "image_size")
    assert figures["ratios"] == {}
    assert [entry["settings"]["image_size"] for entry in figures["contestants"]] == [64, 96]


def test_every_unit_has_a_workload():
    for what in workloads.UNITS:
        assert callable(getattr(workloads, f"make_{what}"))


def test_peers_do_what_can_be_measured():
    assert {what for able in PEERS.values() for what in able} <= set(workloads.UNITS)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["match", "--json=x", "--repeats=0"],
        ["--json=x"],
        ["match", "--json=x", "--against=nobody"],
        ["match", "--json=x", "--against=torchvision"],
        ["match", "--json=x", "--sweep=instances"],
        ["match", "--json=x", "--sweep=instances=many"],
        ["match", "--json=x", "--sweep=model_dir=1"],
        ["match", "--json=x", "--sweep=instances=1", "--against=model_garden"],
    ],
)
def test_bad_flags_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["benchmark.py", *arguments])
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_missing_data_is_one_sentence(tmp_path, capsys):
    assert main(["benchmark.py", "evaluate", f"--json={tmp_path}/f.json"]) == 1
    assert capsys.readouterr().err.startswith("error: ours: --object_annotations_file")
    assert not (tmp_path / "f.json").exists()


def test_a_missing_interpreter_is_one_sentence(tmp_path, capsys):
    arguments = ["--image_size=128", "--images=2", "--repeats=1", f"--json={tmp_path}/f.json"]
    peer = f"--against=model_garden:{tmp_path}/python"
    assert main(["benchmark.py", "match", *arguments, peer]) == 1
    assert "cannot be run: No such file" in capsys.readouterr().err


def test_what_ends_a_contestant_is_told():
    spec = Spec("no_such_peer", "match", sys.executable, (), {})
    with pytest.raises(ContestantError, match="no_such_peer.*No module named"):
        take_turns([spec], 1)


def test_the_stock_of_a_stream_is_not_timed(monkeypatch):
    calls, answers = [], []
    monkeypatch.setattr(
        "tools.contestants._prepare", lambda spec: (lambda: calls.append(1) or 7, ())
    )
    serve(Spec("ours", "input", "python", (), {}), iter(["run\n", "run\n"]), answers.append)
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
    monkeypatch.setattr("tools.contestants._LOOK_SECONDS", 0.01)
    busy, idle = Busy(1.0, 1.5, 2.0, 2.4, 3.0, 3.0, 9.0), Busy(*[7.0] * 7)
    _wait_for_rest([busy, idle])
    assert busy.readings == [9.0]


def test_measures_a_sweep(tmp_path):
    arguments = ["--image_size=128", "--images=4", "--repeats=2", "--sweep=instances=2,3"]
    assert main(["benchmark.py", "match", *arguments, f"--json={tmp_path}/new/f.json"]) == 0
    figures = json.loads((tmp_path / "new" / "f.json").read_text(encoding="utf-8"))
    assert (figures["what"], figures["sweep"]) == ("match", "instances")
    assert [entry["settings"]["instances"] for entry in figures["contestants"]] == [2, 3]
    for entry in figures["contestants"]:
        assert 0 < entry["min"] <= entry["median"] <= entry["max"]
        assert entry["peak_rss_mb"] > 50
        assert entry["ready_seconds"] > 0


def test_compares_evaluations(tmp_path):
    coco = {
        "images": [{"id": 1, "height": 60, "width": 80, "file_name": "1.jpg"}],
        "categories": [{"id": 4, "name": "cat"}],
    }
    coco = stand_ins.draw_annotations(coco, 5, np.random.default_rng(0))
    (tmp_path / "coco.json").write_text(json.dumps(coco), encoding="utf-8")
    arguments = [f"--object_annotations_file={tmp_path}/coco.json", "--kind=bbox"]
    arguments += ["--repeats=1", "--against=pycocotools", f"--json={tmp_path}/f.json"]
    assert main(["benchmark.py", "evaluate", *arguments]) == 0
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in figures["contestants"]] == ["ours", "pycocotools"]
    assert "pycocotools" in figures["contestants"][1]["versions"]
    assert figures["ratios"]["pycocotools"]["median"] > 0
