"""What the parts of an own training loop make of settings and records; docs/API.md has loops."""

import pytest

import msrcnn


def test_steps_of_a_flagfile_scale_with_the_batch_and_given_ones_are_literal(tmp_path):
    (tmp_path / "a.flags").write_text(
        "--learning_rate_batch_size=16\n--train_steps=100\n--warmup_steps=10\n--learning_rate=0.08"
    )
    settings = msrcnn.make_settings(tmp_path / "a.flags", train_batch_size=4, train_steps=7)
    assert (settings.train.train_steps, settings.train.warmup_steps) == (7, 40)
    assert settings.train.learning_rate == pytest.approx(0.02)


def test_without_classes_there_is_no_network():
    with pytest.raises(ValueError, match="^--num_classes=0: give the number of classes"):
        msrcnn.build(msrcnn.make_settings(system="faster_rcnn"))


def test_records_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(msrcnn.UserError, match="none"):
        msrcnn.make_settings(train_file_pattern=tmp_path / "none-*")


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    small = {"num_classes": 3, "backbone": "resnet18", "backbone_width": 8, "fpn_channels": 8}
    network = msrcnn.build(msrcnn.make_settings(system="faster_rcnn", head_dim=8, **small))
    settings = msrcnn.make_settings(system="faster_rcnn", head_dim=16, **small)
    path = msrcnn.save(network, settings, tmp_path / "a")
    with pytest.raises(msrcnn.UserError, match="does not fit this network"):
        msrcnn.build(settings, checkpoint=path)
    with pytest.raises(msrcnn.UserError, match="There is no readable checkpoint"):
        msrcnn.build(settings, checkpoint=tmp_path / "b")
