"""Estimates of round numbers that can be checked by hand."""

import json

import pytest

from data.errors import UserError
from tools.scaling.estimates import Estimates, Input, Machine, read_inputs

ONE, EIGHT = Machine("one", "h200", 1, 1, 4), Machine("eight", "tpu", 8, 2, 16)
WORK = {
    "trained_weights": 50_000_000,
    "checkpoint_bytes": 400_000_000,
    "bytes": {"record": 150_000, "image": 3_000_000, "labels": 1_000_000},
    "train": {
        "forward": {"backbone": [100, 7], "maskiou_head": [20, 7]},
        "backward": {"backbone": [200, 7]},
    },
}
INPUTS = {
    "h200.train_images_per_second": 100,
    "h200.predict_images_per_second": 400,
    "h200.peak_tflops": 1000,
    "h200.memory_gb_per_s": 4000,
    "h200.link_gb_per_s": 1,
    "h200.usd_per_hour": 10,
    "tpu.peak_tflops": 200,
    "tpu.memory_gb_per_s": 1000,
    "tpu.link_gb_per_s": 35,
    "tpu.usd_per_hour": 1,
    "tpu.vcpus_per_chip": 5,
    "images": 720_000,
    "eval_every_steps": 19_000,
    "eval_images": 3600,
    "detections_per_image": 100,
    "fast_cpu.input_ms": 5,
    "slow_cpu.input_ms": 20,
    "fast_cpu.paste_ms": 0.1,
    "slow_cpu.paste_ms": 1,
    "fast_cpu.metrics_ms": 1,
    "save_every_steps": 9_000,
    "save_every_minutes": 15,
    "storage_gb_per_s": 0.1,
    "usable_vcpus": 0.5,
    "service_vcpus": 8,
    "service_gbit_per_s": 1.6,
}


@pytest.fixture
def estimates():
    return Estimates(WORK, {name: Input(value, "") for name, value in INPUTS.items()})


def test_work_is_summed_over_both_directions(estimates):
    assert estimates.flops("train") == 320
    assert estimates.flops("train", without=("maskiou_head",)) == 300


def test_rates_of_other_chips_lie_between_arithmetic_and_bandwidth(estimates):
    assert estimates.rate_per_chip("train", "h200") == (100, 100)
    assert estimates.rate_per_chip("train", "tpu") == pytest.approx((20, 25))
    assert estimates.rate_per_chip("predict", "tpu") == pytest.approx((80, 100))


def test_chips_wait_for_the_sum_of_gradients(estimates):
    # 200 MB, of which each chip sends 7/8 twice, at 35 GB/s.
    assert estimates.reduction_seconds(ONE) == 0
    assert estimates.reduction_seconds(EIGHT) == pytest.approx(0.01)
    # Two images of each chip take 0.1 and 0.08 s.
    assert estimates.training_rate(EIGHT) == pytest.approx((16 / 0.11, 16 / 0.09))


def test_vcpus_and_hosts_of_the_service(estimates):
    assert estimates.vcpus_needed(200) == pytest.approx((1, 4))
    assert estimates.usable_vcpus(EIGHT) == 10
    # 50 images/s are 1.6 Gbit/s, and 400 images/s are 8 vCPUs: here the network decides.
    assert estimates.service_hosts(50) == 1
    assert estimates.service_hosts(101) == 3


def test_hours_and_money(estimates):
    assert estimates.training_hours(ONE) == pytest.approx((2, 2))
    # 180,000 steps have 10 evaluations.
    assert estimates.evaluated_images(ONE) == 36_000
    # 3.6 million masks take 0.1 to 1 h, the 36,000 images 0.025 h on the chip and 0.01 h to rate.
    assert estimates.pasting_hours(ONE) == pytest.approx((0.1, 1))
    assert estimates.evaluation_hours(ONE) == pytest.approx((0.11, 1.01))
    # 20 checkpoints of 4 s are more than one every 15 minutes in 2 h.
    assert estimates.saving_hours(ONE) == pytest.approx((80 / 3600, 80 / 3600))
    assert estimates.total_hours(ONE).low == pytest.approx(2 + 0.11 + 80 / 3600)
    assert estimates.usd(EIGHT, 3) == 24


def write(folder, inputs):
    paths = folder / "work.json", folder / "inputs.json"
    paths[0].write_text(json.dumps(WORK))
    paths[1].write_text(json.dumps(inputs))
    return map(str, paths)


def test_a_change_replaces_one_input(tmp_path):
    paths = write(tmp_path, {"a.b": [1, "measured"], "c": [2, "assumed"]})
    work, inputs = read_inputs(*paths, ["a.b=2.5"])
    assert work == WORK
    assert inputs == {"a.b": (2.5, "--set"), "c": (2, "assumed")}


@pytest.mark.parametrize("change", ["d=1", "c", "c=", "c=two", "c=0", "c=nan", "c=inf", "=1"])
def test_changes_that_cannot_be_made_are_refused(tmp_path, change):
    with pytest.raises(UserError, match=f"--set={change}"):
        read_inputs(*write(tmp_path, {"c": [2, "assumed"]}), [change])


@pytest.mark.parametrize(
    "inputs", [{"c": 2}, {"c": ["two", "assumed"]}, {"c": [0, "measured"]}, ["c"], 3]
)
def test_other_files_are_refused(tmp_path, inputs):
    with pytest.raises(UserError, match="inputs.json"):
        read_inputs(*write(tmp_path, inputs))
