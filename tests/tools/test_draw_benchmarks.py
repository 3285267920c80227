"""Charts of benchmarks: the numbers drawn, the same bytes every time, the refusals."""

import json
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from tools.benchmarks.charts import draw_overview, draw_scaling
from tools.benchmarks.measurements import chart_order, describe, format_times, read_measurement
from tools.draw_benchmarks import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
MACHINE = {"cpu": "AMD EPYC(TM) 7B13 @ 2.10GHz", "cpus": 2, "memory_gb": 24.2}


def contestant(name, median, **settings):
    """A contestant whose runs spread by a tenth to both sides."""
    known = {"image_size": 512, "batch_size": 2, "precision": "float32", "instances": 0}
    spread = {"median": median, "min": 0.9 * median, "max": 1.1 * median}
    return {"name": name, "settings": known | settings, **spread, "peak_rss_mb": 2048.0}


def content(what="train", unit="s/step", **changes):
    """A file with Model Garden twice as slow and torchvision a quarter faster."""
    peers = {"model_garden": 0.5, "torchvision": 1.25}
    return {
        "what": what,
        "unit": unit,
        "date": "2026-11-25",
        "machine": MACHINE,
        "sweep": "",
        "contestants": [contestant("ours", 1.0), *(contestant(n, 1 / r) for n, r in peers.items())],
        "ratios": {n: {"median": r, "min": 0.8 * r, "max": 1.1 * r} for n, r in peers.items()},
    } | changes


def sweep(name="image_size", values=(256, 512, 1024), medians=(0.5, 2.0, 8.0), **changes):
    """A file with one setting that varies."""
    ours = [
        contestant("ours", median, **{name: value})
        for value, median in zip(values, medians, strict=True)
    ]
    return content(sweep=name, contestants=ours, ratios={}, **changes)


@pytest.fixture
def write(tmp_path):
    """Writes contents as JSON files and returns their paths."""

    def write(*contents):
        paths = [tmp_path / f"{number}.json" for number in range(len(contents))]
        for path, entry in zip(paths, contents, strict=True):
            path.write_text(json.dumps(entry))
        return [str(path) for path in paths]

    return write


def texts(path):
    """All texts of an SVG."""
    tags = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(tag.itertext()).strip() for tag in tags]


def test_the_overview_says_how_many_times_as_fast(write, tmp_path):
    rate = {"model_garden": {"median": 12.3, "min": 11.0, "max": 13.0}}
    file = "model_garden dynamic.tflite"
    export = content(
        "export", "s/image", ratios={file: {"median": 0.4, "min": 0.4, "max": 0.4}},
        contestants=[
            contestant(name, 2) for name in ("ours SavedModel saved_model", "ours LiteRT x", file)
        ],
    )  # fmt: skip
    convert = content(
        "convert", "images/s", date="2026-11-24", ratios=rate,
        contestants=[contestant("ours", 123, num_processes=2), contestant("model_garden", 10)],
    )  # fmt: skip
    output = tmp_path / "new" / "overview.svg"
    assert (
        main(["draw", "--chart=overview", f"--output={output}", *write(content(), convert, export)])
        == 0
    )
    drawn = texts(output)
    for text in (
        "Training", "Model Garden: 512 px, batch 2, float32", "2.0×",
        "torchvision: 512 px, batch 2, float32", "0.80×",
        "Conversion", "Model Garden: 2 processes", "12×",
        "Exported models", "Model Garden dynamic.tflite: 512 px", "2.5×",
        "AMD EPYC 7B13, 2 CPUs, 24 GB · 2026-11-24 to 2026-11-25",
    ):  # fmt: skip
        assert text in drawn
    assert drawn.index("Conversion") < drawn.index("Training")


def test_bars_and_thin_lines_have_the_ratios_lengths(write):
    axes = draw_overview([read_measurement(path) for path in write(content())]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([1.0, -0.2])
    (lines,) = axes.collections
    spans = [sorted(end[0] for end in line) for line in lines.get_segments()]
    assert spans == [pytest.approx([2 / 1.1, 2 / 0.8]), pytest.approx([0.8 / 1.1, 0.8 / 0.8])]


def test_scaling_names_its_panels(write, tmp_path):
    batches = sweep("batch_size", (1, 2, 4), (1.0, 1.5, 2.0))
    start = sweep(what="start", unit="s")
    output = tmp_path / "scaling.svg"
    files = write(sweep(), batches, start, content())
    assert main(["draw", *files, "--chart=scaling", f"--output={output}"]) == 0
    drawn = texts(output)
    for text in (
        "Training by image size", "batch 2, float32", "Training by batch size", "512 px, float32",
        "Start-up by image size", "seconds, lower is better", "images/s", "peak memory, GB", "1024",
    ):  # fmt: skip
        assert text in drawn


@pytest.mark.parametrize(
    ("what", "unit", "rates"),
    [
        ("train", "s/step", [4.0, 1.0, 0.25]),
        ("predict", "s/image", [2.0, 0.5, 0.125]),
        ("match", "ms/image", [2000.0, 500.0, 125.0]),
        ("input", "images/s", [0.5, 2.0, 8.0]),
        ("start", "s", [0.5, 2.0, 8.0]),
    ],
)
def test_every_unit_becomes_images_per_second(write, what, unit, rates):
    measurement = read_measurement(write(sweep(what=what, unit=unit))[0])
    above, below = draw_scaling([measurement]).axes
    assert list(above.lines[0].get_xdata()) == [256, 512, 1024]
    assert list(above.lines[0].get_ydata()) == pytest.approx(rates)
    assert list(below.lines[0].get_ydata()) == [2.0, 2.0, 2.0]
    spread = measurement.throughput(measurement.programs[0])
    flipped = unit in ("s/step", "s/image", "ms/image")
    assert spread.low == pytest.approx(rates[0] / 1.1 if flipped else 0.9 * rates[0])
    assert spread.high == pytest.approx(rates[0] / 0.9 if flipped else 1.1 * rates[0])


def test_axes_are_logarithmic_only_where_values_span_decades(write):
    wide = sweep("instances", (1000, 1, 10), (100.0, 1.0, 2.0), unit="ms/image", what="match")
    narrow = sweep("batch_size", (1, 2), (1.0, 1.5))
    scales = []
    for path in write(wide, narrow):
        above, below = draw_scaling([read_measurement(path)]).axes
        scales.append((above.get_xscale(), above.get_yscale()))
        assert below.get_yscale() == "linear" and below.get_ylim()[0] == 0
    assert scales == [("log", "log"), ("linear", "linear")]


def test_a_sweep_of_one_value_and_from_zero_is_drawn(write):
    for path in write(sweep(values=(512,), medians=(1.0,)), sweep("positives", (0, 8), (1, 2))):
        assert len(draw_scaling([read_measurement(path)]).axes) == 2


@pytest.mark.parametrize("chart", ["overview", "scaling"])
@pytest.mark.parametrize("picture", ["svg", "png"])
def test_the_same_files_give_the_same_bytes(write, tmp_path, chart, picture):
    files = write(content(), sweep())
    outputs = [tmp_path / f"{number}.{picture}" for number in range(2)]
    for output in outputs:
        assert main(["draw", f"--chart={chart}", f"--output={output}", *files]) == 0
    first, second = (output.read_bytes() for output in outputs)
    assert first == second
    assert first.startswith(b"\x89PNG" if picture == "png" else b"<?xml")
    assert b"<dc:date>" not in first and b"Matplotlib" not in first


def test_settings_that_differ_are_named(write):
    deeper = content(contestants=[contestant("ours", 1.0, backbone="resnet101")], ratios={})
    plain = content(contestants=[contestant("ours", 1.0, backbone="resnet50")], ratios={})
    entries = [read_measurement(path) for path in write(deeper, plain)]
    assert describe(entries[0]) == "512 px, batch 2, float32"
    assert describe(entries[0], entries) == "512 px, batch 2, float32, resnet101"
    photos, one = (
        content(
            "convert", "images/s", ratios={},
            contestants=[contestant("ours", 1.0, num_processes=2, object_annotations_file=file)],
        )
        for file in ("instances.json", "one.json")
    )  # fmt: skip
    entries = [read_measurement(path) for path in write(photos, one)]
    assert describe(entries[1], entries) == "2 processes, one.json"


def test_half_precision_comes_last_and_small_images_first(write):
    cases = [(512, "mixed_bfloat16"), (1024, "float32"), (832, "float32")]
    files = write(
        *(
            content(contestants=[contestant("ours", 1.0, image_size=s, precision=p)], ratios={})
            for s, p in cases
        )
    )
    entries = sorted(map(read_measurement, files), key=chart_order)
    assert [describe(entry) for entry in entries] == [
        "832 px, batch 2, float32",
        "1024 px, batch 2, float32",
        "512 px, batch 2, bfloat16",
    ]


def test_ratios_are_written_with_what_can_be_read():
    ratios = (0.042, 0.45, 0.999, 1.04, 2.26, 9.96, 123.4)
    expected = ["0.042×", "0.45×", "1.00×", "1.04×", "2.3×", "10×", "123×"]
    assert [format_times(ratio) for ratio in ratios] == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "it does not contain a JSON object"),
        ('{"what": "train", "median": 2}', "'unit' is missing"),
        (content(unit="miles"), "cannot have measured 'train' in 'miles'"),
        (content("walk"), "cannot have measured 'walk' in 's/step'"),
        (content(contestants=[]), "first contestant is not 'ours'"),
        (content(contestants=[contestant("torchvision", 1)]), "first contestant is not 'ours'"),
        (content(contestants=[contestant("ours", 0)]), "median is 0, not a positive number"),
        (content(contestants=[3]), "is not a file of tools/benchmark.py"),
        (content(contestants=[contestant("ours", 1) | {"min": 3}]), "between its min and max"),
        (content(ratios={}), "'model_garden' is missing"),
        (content(machine="mine"), "is not a file of tools/benchmark.py"),
        (sweep(unit="s/step") | {"sweep": "colour"}, "'colour' is missing"),
        (sweep(values=([1], [2], [3])), "image_size is not a whole number"),
    ],
)
def test_foreign_files_are_refused_in_one_sentence(tmp_path, capsys, text, reason):
    path = tmp_path / "foreign.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    output = tmp_path / "chart.svg"
    assert main(["draw", "--chart=scaling", f"--output={output}", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: ") and reason in said
    assert said.count("\n") == 1
    assert not output.exists()


def test_files_without_what_the_chart_shows_are_refused(write, tmp_path, capsys):
    for chart, entry, need in (("overview", sweep(), "peers"), ("scaling", content(), "a sweep")):
        output = f"--output={tmp_path / 'chart.svg'}"
        assert main(["draw", f"--chart={chart}", output, *write(entry)]) == 1
        assert need in capsys.readouterr().err


def test_missing_matplotlib_names_the_extra(write, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = f"--output={tmp_path / 'chart.svg'}"
    assert main(["draw", "--chart=overview", output, *write(content())]) == 1
    said = capsys.readouterr().err
    assert "extra `charts`" in said and said.count("\n") == 1


def test_an_output_that_cannot_be_written_is_named(write, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    output = f"--output={tmp_path / 'file' / 'chart.svg'}"
    assert main(["draw", "--chart=overview", output, *write(content())]) == 1
    assert "chart.svg: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--chart=pie", "--output=a.svg", "x.json"],
        ["--chart=overview", "x.json"],
        ["--chart=overview", "--output=a.pdf", "x.json"],
        ["--chart=overview", "--output=a.svg"],
        ["--chart=overview", "--output=a.svg", "--colour=red", "x.json"],
    ],
)
def test_bad_flags_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["draw", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


def test_help_as_a_script_needs_neither_matplotlib_nor_numpy():
    code = (
        "import runpy, sys; sys.argv = ['draw', '--help']\n"
        "try: runpy.run_path('tools/draw_benchmarks.py', run_name='__main__')\n"
        "finally: assert not {'matplotlib', 'numpy', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--chart" in done.stdout and "overview" in done.stdout
