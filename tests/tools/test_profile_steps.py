"""Adding up a profile."""

import pytest
import tensorflow as tf

from tools.profile_steps import _profile, main, own_times, part_of


def test_what_runs_within_an_operation_is_not_counted_twice():
    events = [
        (0, 100, "fpn/conv:Conv2D"),
        (10, 30, "fpn/relu:Relu#id=3#"),
        (50, 20, "ParallelFor"),
        (200, 5, "fpn/relu:Relu"),
        (300, 7, "ExecutorState::ProcessAsync::Start"),
    ]
    assert own_times(reversed(events)) == {
        ("fpn/conv", "Conv2D"): 70,
        ("fpn/relu", "Relu"): 35,
        ("roi_align/CropAndResize", "CropAndResize"): 7,
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("gradient_tape/roi_align/AvgPool2D/AvgPoolGrad", "roi_align"),
        ("roi_align_1/CropAndResize", "roi_align"),
        ("res_net_1/bottleneck_3_1/conv/Conv2D", "res_net"),
        ("Cast_12", "other"),
        ("gradient_tape/add", "other"),
    ],
)
def test_forward_and_backward_are_of_one_part(name, part):
    assert part_of(name) == part


def test_a_profile_has_the_operations_that_ran(tmp_path):
    left = tf.random.stateless_normal([400, 400], [1, 2])

    @tf.function
    def multiply():
        with tf.name_scope("head"):
            return tf.linalg.matmul(left, left)

    seconds = _profile(lambda: int(multiply().shape[0]), str(tmp_path))
    (key,) = (key for key in seconds if key[1].endswith("MatMul"))
    assert part_of(key[0]) == "head"
    assert 0 < seconds[key] < 10


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["evaluate"], "the first argument must be the stage to profile"),
        (["train", "--batch_size=0"], "--batch_size=0: expected a positive number"),
    ],
)
def test_bad_flags_exit_with_2(capsys, arguments, reason):
    with pytest.raises(SystemExit) as exit_status:
        main(["profile_steps.py", *arguments])
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {reason}")
