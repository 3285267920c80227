"""The benchmark's arithmetic, its refusals, and one whole measurement."""

import json

import numpy as np
import pytest

from tools import workloads
from tools.benchmark import UNITS, Sample, main, summarise, time_workload


def test_a_sample_in_each_unit():
    sample = Sample(images=4, wall_seconds=2.0, cpu_seconds=3.0)
    assert sample.value("images/s") == 2.0
    assert sample.value("s/step") == 2.0
    assert sample.value("s/image") == 0.5
    assert sample.value("ms/image") == 500.0


def test_the_summary_quotes_the_median():
    samples = [Sample(2, seconds, seconds / 2) for seconds in (3.0, 1.0, 2.0)]
    summary = summarise("predict", samples, {"image_size": 64})
    assert (summary["median"], summary["min"], summary["max"]) == (1.0, 0.5, 1.5)
    assert summary["repeats"] == 3
    assert summary["unit"] == "s/image"
    assert summary["cpu_ms_per_image"] == 500.0
    assert summary["settings"]["image_size"] == 64
    assert summary["peak_rss_mb"] > 1


def test_the_warm_up_is_not_counted():
    calls = []

    def work():
        calls.append(1)
        return 7

    samples = time_workload(work, repeats=3)
    assert len(calls) == 4
    assert [sample.images for sample in samples] == [7, 7, 7]


def test_every_unit_has_a_workload():
    for what in UNITS:
        assert callable(getattr(workloads, f"make_{what}"))


def test_drawn_boxes_lie_on_the_canvas():
    boxes = workloads.draw_boxes(np.random.default_rng(0), 2000, 640)
    assert boxes.min() >= 0 and boxes.max() <= 640
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() > 0
    small = np.mean(sides.prod(1) < 32**2)
    assert small == pytest.approx(0.41, abs=0.05)


@pytest.mark.parametrize(
    "arguments", [[], ["walk"], ["match"], ["match", "--json=x", "--repeats=0"], ["--json=x"]]
)
def test_bad_flags_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["benchmark.py", *arguments])
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_missing_input_is_one_sentence(tmp_path, capsys):
    arguments = ["evaluate", f"--json={tmp_path}/f.json"]
    assert main(["benchmark.py", *arguments]) == 1
    assert capsys.readouterr().err.startswith("error: --eval_annotation_file")
    assert not (tmp_path / "f.json").exists()


def test_measures_matching(tmp_path):
    arguments = ["--image_size=128", "--instances=3", "--images=4", "--repeats=2"]
    assert main(["benchmark.py", "match", *arguments, f"--json={tmp_path}/f.json"]) == 0
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert figures["what"] == "match"
    assert 0 < figures["min"] <= figures["median"] <= figures["max"]
    assert figures["settings"]["instances"] == 3
