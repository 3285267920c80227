"""What is said before the first step."""

from toy_model import toy_params

from trainer.opening import describe_schedule, describe_system

CATEGORIES = [{"label": n, "id": n, "name": name} for n, name in enumerate("abcdefg", 1)]


def test_the_first_line_has_steps_epochs_images_and_rate(tmp_path):
    params = toy_params(tmp_path, train_steps=60, learning_rate=0.02, learning_rate_batch_size=16)
    assert describe_schedule(params, 0, 100) == (
        "60 steps of batch 4: 240 images, 2.4 epochs of 100; learning rate 0.005 (step) after 2 "
        "steps of warm-up."
    )
    assert describe_schedule(params, 7, None) == (
        "60 steps, 7 of them taken, of batch 4: 240 images; learning rate 0.005 (step) after 2 "
        "steps of warm-up."
    )


def test_the_second_line_has_network_devices_weights_and_classes(tmp_path):
    params = toy_params(tmp_path, num_classes=8, backbone="resnet18", include_maskiou=False)
    assert describe_system(params, CATEGORIES, "2 x GPU", "random weights") == (
        "Mask R-CNN, resnet18, float32, on 2 x GPU, random weights; 7 classes (a, b, c, d, e, ...)."
    )
    params = toy_params(tmp_path, include_mask=False, include_maskiou=False)
    said = describe_system(params, [], "the CPU", "from step 4, weights of m/ckpt-4")
    assert said.startswith("Faster R-CNN, resnet50, float32, on the CPU, from step 4, weights of m")
    assert said.endswith("; 1 class.")
