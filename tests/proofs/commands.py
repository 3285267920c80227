"""Running the project's commands as a user would, and reading what they leave behind."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"


def run(*arguments, timeout=7200):
    """Runs a Python program of the repository; its output is shown only when it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def convert(image_dir, annotations, prefix, num_shards=2):
    """Makes records and returns their pattern."""
    run(
        "tools/create_coco_tfrecord.py",
        f"--image_dir={image_dir}",
        f"--object_annotations_file={annotations}",
        f"--output_file_prefix={prefix}",
        f"--num_shards={num_shards}",
    )
    return f"{prefix}-*.tfrecord"


def draw_shapes(folder):
    """Draws 16 training and 4 validation pictures; returns the training records' pattern."""
    run("tools/draw_shapes.py", f"--output_dir={folder}", "--num_train=16", "--num_val=4")
    return convert(f"{folder}/train", f"{folder}/annotations/train.json", f"{folder}/records/train")


def train(model_dir, *arguments):
    """Trains and returns the lines of train.jsonl."""
    run("-m", "trainer.main", f"--model_dir={model_dir}", *arguments)
    return read_log(model_dir)


def read_log(model_dir):
    """The lines of train.jsonl."""
    with open(f"{model_dir}/train.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def metrics(model_dir):
    """The latest evaluation's numbers."""
    with open(f"{model_dir}/eval/metrics.json", encoding="utf-8") as file:
        return json.load(file)


def losses(line):
    """The losses of a line of train.jsonl by name."""
    return {name: value for name, value in line.items() if name.endswith("loss")}
