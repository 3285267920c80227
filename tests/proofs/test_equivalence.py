"""The same training run in other arrangements: two devices, two workers, compiled with XLA."""

import pathlib
import sys

import pytest
from commands import draw_shapes, losses, read_log, train

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "trainer"))
from worker_processes import start_workers  # noqa: E402

pytestmark = pytest.mark.proof

# With more slots than candidates every RoI is taken, so no draw depends on the arrangement.
EXHAUSTIVE = ("--rois_per_image=512", "--roi_positive_fraction=1.0")
SETTINGS = (
    "--flagfile=configs/quickstart.flags",
    "--precision=float32",
    "--deterministic",
    # AdamW's first steps take the sign of a gradient, which float noise decides where it is tiny.
    "--optimizer=sgd",
    "--learning_rate=0.005",
    "--log_every_steps=1",
    "--train_batch_size=4",
    "--mode=train",
)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def one_device(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    pattern = f"--train_file_pattern={records}"
    return train(folder, *SETTINGS, *EXHAUSTIVE, pattern, "--train_steps=10")


def test_two_devices_take_the_same_steps_as_one(records, one_device, tmp_path):
    two = train(
        tmp_path,
        *SETTINGS,
        *EXHAUSTIVE,
        f"--train_file_pattern={records}",
        "--train_steps=10",
        "--num_logical_cpus=2",
    )
    assert losses(two[0]) == pytest.approx(losses(one_device[0]), rel=1e-5)
    for ours, theirs in zip(two, one_device, strict=True):
        assert losses(ours) == pytest.approx(losses(theirs), rel=1e-3), ours["step"]


@pytest.mark.parametrize("norm", ["gn", "sync_bn"])
def test_two_workers_take_the_same_steps_as_one(records, tmp_path, norm):
    common = ("-m", "trainer.main", *SETTINGS, *EXHAUSTIVE, "--train_steps=10", f"--norm={norm}")
    common += (f"--train_file_pattern={records}",)
    logs = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        for worker in start_workers([*common, f"--model_dir={folder}"], count):
            status, _, errors = worker.finish(timeout=1800)
            assert status == 0, errors[-3000:]
        logs.append(read_log(folder))
    one, two = logs
    assert losses(two[0]) == pytest.approx(losses(one[0]), rel=1e-5)
    for ours, theirs in zip(two, one, strict=True):
        assert losses(ours) == pytest.approx(losses(theirs), rel=1e-3), ours["step"]


def test_a_compiled_step_has_the_plain_graph_s_losses(records, one_device, tmp_path):
    compiled = train(
        tmp_path,
        *SETTINGS,
        *EXHAUSTIVE,
        f"--train_file_pattern={records}",
        "--train_steps=1",
        "--jit_compile",
    )
    assert losses(compiled[0]) == pytest.approx(losses(one_device[0]), rel=1e-4)
