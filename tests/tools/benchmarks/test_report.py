"""The figures: medians, ratios of turns, and nothing of the machine's folders."""

from tools.benchmarks.report import describe_figures, summarise
from tools.benchmarks.turns import Result
from tools.benchmarks.worker import Job, Sample


def make_result(name: str, *seconds: float, label: str = "", **settings) -> Result:
    job = Job(name, "predict", "python", (), settings, label)
    samples = [Sample(2, wall, wall / 2) for wall in seconds]
    return Result(job, {"numpy": "2"}, 3.0, 4.0, samples, peak_rss_mb=100.0)


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


def test_each_of_our_programs_is_compared_with_those_after_it():
    results = [
        make_result("ours", 6.0, 12.0, label="SavedModel"),
        make_result("ours", 3.0, 6.0, label="LiteRT"),
        make_result("model_garden", 12.0, 24.0, label="dynamic.tflite"),
    ]
    figures = summarise("predict", results)
    first, second, peer = figures["contestants"]
    medians = {name: ratio["median"] for name, ratio in figures["ratios"].items()}
    assert medians == {"ours LiteRT": 2.0, "model_garden dynamic.tflite": 0.5}
    assert second["ratios"] == {
        "model_garden dynamic.tflite": {"median": 0.25, "min": 0.25, "max": 0.25}
    }
    assert "ratios" not in first and "ratios" not in peer
    lines = describe_figures(figures).splitlines()
    assert "ours LiteRT / model_garden dynamic.tflite: 0.250 (from 0.250 to 0.250)" in lines


def test_the_size_of_an_exported_model_is_that_of_all_its_files(tmp_path):
    (tmp_path / "saved_model" / "variables").mkdir(parents=True)
    (tmp_path / "saved_model" / "graph.pb").write_bytes(bytes(3_000_000))
    (tmp_path / "saved_model" / "variables" / "data").write_bytes(bytes(500_000))
    figures = summarise("export", [make_result("ours", 1.0, exports=f"{tmp_path}/saved_model")])
    (entry,) = figures["contestants"]
    assert entry["file_mb"] == 3.5
    assert entry["settings"]["exports"] == "saved_model"
    assert "3.5 MB" in describe_figures(figures)


def test_a_sweep_has_no_ratios():
    results = [make_result("ours", 1.0, image_size=64), make_result("ours", 2.0, image_size=96)]
    figures = summarise("predict", results, "image_size")
    assert figures["ratios"] == {}
    assert [entry["settings"]["image_size"] for entry in figures["contestants"]] == [64, 96]


def test_paths_say_nothing_of_the_machine():
    paths = {"image_dir": "/home/me/photos/train/", "object_annotations_file": "gs://mine/a.json"}
    figures = summarise("predict", [make_result("ours", 1.0, precision="float32", **paths)])
    assert figures["contestants"][0]["settings"] == {
        "image_dir": "train",
        "object_annotations_file": "a.json",
        "precision": "float32",
    }


def test_published_figures_name_no_folder(repository):
    for path in sorted((repository / "docs" / "benchmarks").glob("*.json")):
        text = path.read_text(encoding="utf-8").replace("images/s", "").replace("s/step", "")
        text = text.replace("s/image", "")
        assert "/" not in text and "\\" not in text, f"{path.name} names a folder"
