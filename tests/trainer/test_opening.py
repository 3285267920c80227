"""What is said before the first step."""

import pytest
from toy_model import toy_params

from trainer.opening import (
    describe_schedule,
    describe_system,
    warn_of_frozen_weights,
    warn_of_rate,
    warn_of_slow_precision,
)

CATEGORIES = [{"label": n, "id": n, "name": name} for n, name in enumerate("abcdefg", 1)]


def test_the_first_line_has_steps_epochs_images_and_rate(tmp_path):
    params = toy_params(tmp_path, train_steps=60, learning_rate=0.02, learning_rate_batch_size=16)
    assert describe_schedule(params, 0, 100) == (
        "60 steps of batch 4: 240 images, 2.4 epochs of 100; learning rate 0.005 (step) after 2 "
        "steps of warm-up."
    )
    assert describe_schedule(params, 7, None) == (
        "60 steps, 7 of them done, of batch 4: 240 images; learning rate 0.005 (step) after 2 "
        "steps of warm-up."
    )


def test_the_second_line_has_network_devices_weights_and_classes(tmp_path):
    params = toy_params(tmp_path, num_classes=8, backbone="resnet18", system="mask_rcnn")
    assert describe_system(params, CATEGORIES, "2 x GPU", "random weights") == (
        "Mask R-CNN, resnet18, float32, on 2 x GPU, random weights; 7 classes (a, b, c, d, e, ...)."
    )
    params = toy_params(tmp_path, system="faster_rcnn")
    said = describe_system(params, [], "the CPU", "from step 4, weights of m/ckpt-4")
    assert said.startswith("Faster R-CNN, resnet50, float32, on the CPU, from step 4, weights of m")
    assert said.endswith("; 1 class.")


def test_a_longer_cosine_says_that_the_rate_jumps(tmp_path, capsys):
    cosine = {"learning_rate_schedule": "cosine", "learning_rate": 0.1, "warmup_steps": 0}
    before = toy_params(tmp_path, train_steps=100, **cosine)
    after = toy_params(tmp_path, train_steps=200, **cosine)
    # 0.05 (1 + cos(pi)) = 0 after 100 steps of 100, 0.05 (1 + cos(pi / 2)) = 0.05 of 200.
    warn_of_rate(after, before, 100)
    assert "rate jumps from 0 to 0.05 at step 100" in capsys.readouterr().err
    warn_of_rate(after, after, 100)
    constant = {**cosine, "learning_rate_schedule": "constant"}
    longer = [toy_params(tmp_path, train_steps=steps, **constant) for steps in (100, 200)]
    warn_of_rate(*longer, 100)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "loaded", "said"),
    [
        ({"freeze_at": 2}, "", "Warning: --freeze_at=2 keeps layers"),
        ({"norm": "frozen_bn"}, "", "Warning: --norm=frozen_bn keeps layers"),
        ({"freeze_at": 1, "norm": "frozen_bn"}, "", "--freeze_at=1 and --norm=frozen_bn keep l"),
        ({"train_only": ("box_head", "mask_head")}, "", "--train_only=box_head,mask_head keeps l"),
        ({"freeze_at": 2, "norm": "frozen_bn"}, "m/ckpt-1", ""),
        ({}, "", ""),
    ],
)
def test_random_weights_that_stay_as_they_are_are_warned_about(
    tmp_path, capsys, settings, loaded, said
):
    warn_of_frozen_weights(toy_params(tmp_path, **settings), loaded)
    err = capsys.readouterr().err
    assert said in err if said else err == ""


@pytest.mark.parametrize(
    ("precision", "devices", "flags", "warned"),
    [
        ("mixed_bfloat16", "the CPU", "fma avx2", True),
        ("mixed_bfloat16", "the CPU", "avx2 avx512f avx512bw", False),
        ("mixed_bfloat16", "1 x GPU", "fma avx2", False),
        ("float32", "the CPU", "fma avx2", False),
    ],
)
def test_emulated_precision_is_warned_about(tmp_path, capsys, precision, devices, flags, warned):
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(f"processor : 0\nflags : fpu {flags}\nflags : fpu\n")
    warn_of_slow_precision(toy_params(tmp_path, precision=precision), devices, str(cpu_info))
    assert ("use --precision=float32" in capsys.readouterr().err) == warned
