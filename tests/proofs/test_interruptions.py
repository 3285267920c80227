"""Training that is killed at random moments and started again takes the same steps."""

import json
import pathlib
import random
import sys
import time

import pytest
from commands import SHARED, convert, metrics

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "trainer"))
from worker_processes import start_workers  # noqa: E402

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(14400),
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the datasets of ../shared/data"),
]

NUM_KILLS = 21
# By then, a worker has noticed that another one is gone.
SECONDS_TO_NOTICE = 180
MOMENTS = ("step", "save", "evaluation")
# A narrow network on small canvases: the order of events is that of any other.
SMALL = (
    "--flagfile=configs/nuclei.flags",
    "--precision=float32",
    "--deterministic",
    "--backbone_width=8",
    "--fpn_channels=16",
    "--head_dim=16",
    "--canvases=128x192,192x128,160x160",
    "--short_side=128",
    "--long_side=192",
    "--train_short_side_min=96",
    "--rpn_post_nms_train=64",
    "--rpn_post_nms_test=32",
    "--detections_per_image=10",
    "--rois_per_image=16",
    "--train_batch_size=2",
    "--eval_batch_size=4",
    "--num_eval_images_shown=0",
    "--train_steps=96",
    "--log_every_steps=1",
    "--save_every_steps=4",
    "--eval_every_steps=12",
    "--mode=train_and_eval",
)
MEASURED = {"images_per_second", "input_wait_share", "peak_memory_gb"}
DATASETS = {
    "nuclei": ("nuclei/{}", "nuclei/annotations/instances_{}.json"),
    "coco_tiny": ("coco_tiny/{}2017", "coco_tiny/annotations/instances_{}2017.json"),
}


@pytest.fixture(params=DATASETS)
def command(request, tmp_path):
    """The training's command line but for its model_dir."""
    images, annotations = DATASETS[request.param]
    patterns = {
        split: convert(
            SHARED / images.format(split), SHARED / annotations.format(split), tmp_path / split, 4
        )
        for split in ("train", "val")
    }
    return [
        "-m",
        "trainer.main",
        *SMALL,
        f"--train_file_pattern={patterns['train']}",
        f"--eval_file_pattern={patterns['val']}",
    ]


def read_log(model_dir):
    """The lines of train.jsonl without the times, the last one also if it is being written."""
    path = model_dir / "train.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    parsed = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        {name: value for name, value in line.items() if name not in MEASURED} for line in parsed
    ]


def unfinished(model_dir):
    """Names of what a save is writing, or left when it was cut off."""
    folders = (model_dir, model_dir / "best")
    return {path.name for folder in folders for path in folder.glob("*temp*")}


def is_at(moment, model_dir, before):
    """Whether a run is at a moment of this kind; `before` is what it found when it was started."""
    log = model_dir / "train.jsonl"
    if not log.exists() or log.stat().st_mtime == before["written"]:
        return False
    if moment == "save":
        return bool(unfinished(model_dir) - before["unfinished"])
    steps = [line["step"] for line in read_log(model_dir)]
    return bool(steps) and (steps[-1] % 12 == 0 if moment == "evaluation" else True)


def run_until(command, model_dir, moment, rng, num_workers):
    """Starts a run and kills one of its workers; False if it came to its end before."""
    log = model_dir / "train.jsonl"
    before = {
        "written": log.stat().st_mtime if log.exists() else None,
        "unfinished": unfinished(model_dir),
    }
    workers = start_workers([*command, f"--model_dir={model_dir}"], num_workers)
    processes = [worker.process for worker in workers]
    victim = rng.randrange(num_workers)
    try:
        while is_running(processes) and not is_at(moment, model_dir, before):
            time.sleep(0.002)
        if is_running(processes) and moment != "save":
            time.sleep(rng.uniform(0.0, 5.0 if moment == "step" else 2.0))
        ended = not is_running(processes)
    finally:
        processes[victim].kill()
    for index, worker in enumerate(workers):
        status, _, errors = worker.finish(SECONDS_TO_NOTICE)
        if ended:
            assert status == 0, errors[-3000:]
        elif index != victim:
            assert status == 1 and f"worker {victim} was lost" in errors, errors[-3000:]
    return not ended


def is_running(processes):
    return all(process.poll() is None for process in processes)


def run_whole(command, model_dir, num_workers):
    for worker in start_workers([*command, f"--model_dir={model_dir}"], num_workers):
        status, _, errors = worker.finish(7200)
        assert status == 0, errors[-3000:]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_kills_at_random_moments_change_nothing(command, tmp_path, num_workers):
    run_whole(command, tmp_path / "whole", num_workers)
    whole = read_log(tmp_path / "whole")
    rng = random.Random(7)
    kills: list[str] = []
    model_dir = pathlib.Path()
    while len(kills) < NUM_KILLS:
        if not model_dir.name:
            model_dir = tmp_path / f"killed_{len(kills)}"
        moment = MOMENTS[len(kills) % len(MOMENTS)]
        if run_until(command, model_dir, moment, rng, num_workers):
            kills.append(moment)
            steps = read_log(model_dir)
            print(f"kill {len(kills)} in a {moment} after step {steps[-1]['step'] if steps else 0}")
            assert steps == whole[: len(steps)]
        else:
            check_equal(tmp_path / "whole", model_dir)
            model_dir = pathlib.Path()
    if model_dir.name:
        run_whole(command, model_dir, num_workers)
        check_equal(tmp_path / "whole", model_dir)
    print({moment: kills.count(moment) for moment in MOMENTS})


def check_equal(whole, killed):
    """Logs, metrics and the best checkpoint of two model_dirs agree to the bit."""
    assert read_log(killed) == read_log(whole)
    assert metrics(killed) == metrics(whole)
    best = [json.loads((folder / "best/best.json").read_text()) for folder in (whole, killed)]
    assert best[0] == best[1]
    assert not list(killed.glob("*temp*"))
