"""Checkpoints: resume, strictness, the best one."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_model import ToyNetwork, toy_params, weights_of

from data.config import DataConfig
from data.errors import UserError
from model.config import ModelConfig
from model.systems import build_network
from trainer.checkpoint_files import check_fit, list_shapes, load_network
from trainer.checkpoints import Checkpoints, require_every_variable
from trainer.config import Params
from trainer.optimizer import Updater


def make(tmp_path, width=4, **settings):
    network = ToyNetwork(width)
    updater = Updater(network, toy_params(tmp_path, **settings))
    step = tf.Variable(0, dtype=tf.int64)
    return network, updater, Checkpoints(str(tmp_path), network, updater, step, keep=2)


def change(network, updater):
    """Takes an update by hand so that weights and momentum are no longer the initial ones."""
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.reduce_sum(v * v + v) for v in network.trainable_variables])
    gradients, norm = updater.combine(updater.differentiate(tape, loss))
    updater.apply(tf.distribute.get_strategy(), gradients, norm)


def test_resume_brings_back_weights_optimizer_and_step(tmp_path):
    network, updater, checkpoints = make(tmp_path)
    assert checkpoints.resume() == 0
    change(network, updater)
    checkpoints.step.assign(5)
    checkpoints.save()
    other, other_updater, other_checkpoints = make(tmp_path)
    assert other_checkpoints.resume() == 5
    for one, two in zip(weights_of(network), weights_of(other), strict=True):
        np.testing.assert_array_equal(one, two)
    pairs = zip(updater.optimizer.variables, other_updater.optimizer.variables, strict=True)
    for one, two in pairs:
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    assert int(other_updater.optimizer.iterations) == 1
    assert any(np.any(v.numpy()) for v in other_updater.optimizer.momentums)


def test_names_are_those_in_the_file(tmp_path):
    _, _, checkpoints = make(tmp_path)
    path = checkpoints.save()
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    stored = {
        name.removesuffix(suffix): shape
        for name, shape in tf.train.list_variables(path)
        if name.endswith(suffix) and not name.startswith("save_counter")
    }
    assert list_shapes(checkpoints._recent.checkpoint) == stored
    assert stored["network/hidden/_kernel"] == [3, 4]


def test_recent_checkpoints_are_kept_and_one_step_is_saved_once(tmp_path):
    _, _, checkpoints = make(tmp_path)
    for step in (1, 2, 3, 3):
        checkpoints.step.assign(step)
        checkpoints.save()
    names = sorted(path.stem for path in tmp_path.glob("ckpt-*.index"))
    assert names == ["ckpt-2", "ckpt-3"]


def test_another_architecture_is_refused_and_nothing_is_loaded(tmp_path):
    make(tmp_path, width=4)[2].save()
    network, _, checkpoints = make(tmp_path, width=5)
    before = weights_of(network)
    with pytest.raises(UserError) as refused:
        checkpoints.resume()
    sentence = str(refused.value)
    assert "network/hidden/_kernel is [3, 4] in the checkpoint and [3, 5] here" in sentence
    assert "and " in sentence and "more" in sentence
    for one, two in zip(before, weights_of(network), strict=True):
        np.testing.assert_array_equal(one, two)


def test_another_optimizer_is_refused(tmp_path):
    make(tmp_path)[2].save()
    with pytest.raises(UserError, match="optimizer/variables"):
        make(tmp_path, optimizer="adamw")[2].resume()


def test_missing_and_unknown_tensors_are_named():
    with pytest.raises(UserError) as refused:
        check_fit({"network/a": [1], "network/b": [2]}, {"network/b": [2], "network/c": [3]}, "P")
    assert "network/a is missing in the checkpoint and [1] here" in str(refused.value)
    assert "network/c is [3] in the checkpoint and unknown here" in str(refused.value)
    check_fit({"network/a": [1]}, {"network/a": [1], "optimizer/variables/0": []}, "P")


def test_init_checkpoint_gives_weights_only(tmp_path):
    network, updater, checkpoints = make(tmp_path / "one")
    change(network, updater)
    checkpoints.step.assign(9)
    path = checkpoints.save()
    for source in (path, str(tmp_path / "one")):
        other, other_updater, fresh = make(tmp_path / "two", optimizer="adamw")
        assert fresh.resume(source) == 0
        assert int(other_updater.optimizer.iterations) == 0
        for one, two in zip(weights_of(network), weights_of(other), strict=True):
            np.testing.assert_array_equal(one, two)


def test_evaluation_takes_the_latest_and_its_step(tmp_path):
    network, updater, checkpoints = make(tmp_path)
    change(network, updater)
    checkpoints.step.assign(4)
    checkpoints.save()
    other, _, for_evaluation = make(tmp_path, optimizer="adamw")
    assert for_evaluation.load_for_evaluation() == 4
    np.testing.assert_array_equal(weights_of(network)[0], weights_of(other)[0])


def test_no_checkpoint_is_a_sentence(tmp_path):
    network, _, checkpoints = make(tmp_path)
    with pytest.raises(UserError, match="no checkpoint in --model_dir"):
        checkpoints.load_for_evaluation()
    for path in (str(tmp_path / "nothing"), str(tmp_path)):
        with pytest.raises(UserError, match="no readable checkpoint"):
            load_network(network, path)
    foreign = tmp_path / "resnet50.pth"
    foreign.write_bytes(b"PK")
    with pytest.raises(UserError, match="with tools/import_weights.py"):
        load_network(network, str(foreign))


def read_best(tmp_path) -> dict:
    return json.loads((tmp_path / "best" / "best.json").read_text())


def test_the_best_is_kept_over_restarts(tmp_path):
    network, updater, checkpoints = make(tmp_path)
    kept = []
    for step, metric in ((1, math.nan), (2, 0.2), (3, 0.5), (4, 0.5), (5, 0.4)):
        checkpoints.step.assign(step)
        kept.append(checkpoints.record_evaluation(metric))
    assert kept == [False, True, True, False, False]
    restarted = make(tmp_path)[2]
    restarted.step.assign(6)
    assert not restarted.record_evaluation(0.45)
    assert read_best(tmp_path) == {"step": 3, "AP": 0.5, "evaluated_step": 6}
    assert [path.stem for path in (tmp_path / "best").glob("*.index")] == ["ckpt-3"]
    load_network(network, str(tmp_path / "best"))


def test_the_best_and_its_number_survive_a_cut_between_their_writes(tmp_path, monkeypatch):
    _, _, checkpoints = make(tmp_path)
    checkpoints.step.assign(1)
    checkpoints.record_evaluation(0.2)

    def cut(content, path):
        raise InterruptedError

    checkpoints.step.assign(2)
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr("trainer.checkpoints.write_json", cut)
        checkpoints.record_evaluation(0.5)
    assert read_best(tmp_path)["AP"] == 0.2
    restarted = make(tmp_path)[2]
    restarted.step.assign(2)
    assert not restarted.is_evaluated()
    assert not restarted.record_evaluation(0.5), "it is kept already"
    assert read_best(tmp_path) == {"step": 2, "AP": 0.5, "evaluated_step": 2}
    restarted.step.assign(3)
    assert not restarted.record_evaluation(0.4)
    assert [path.stem for path in (tmp_path / "best").glob("*.index")] == ["ckpt-2"]


def test_a_best_whose_number_stands_beside_it_only_is_compared_with(tmp_path):
    _, _, checkpoints = make(tmp_path)
    checkpoints.step.assign(7)
    tf.train.CheckpointManager(
        checkpoints._recent.checkpoint, str(tmp_path / "best"), 1, checkpoint_name="ckpt"
    ).save(checkpoint_number=7)
    (tmp_path / "best" / "best.json").write_text('{"step": 7, "AP": 0.6}')
    restarted = make(tmp_path)[2]
    restarted.step.assign(8)
    assert not restarted.record_evaluation(0.5)
    assert restarted.record_evaluation(0.7)


def test_what_a_save_that_was_cut_off_left_is_removed(tmp_path):
    _, _, checkpoints = make(tmp_path)
    checkpoints.step.assign(3)
    checkpoints.save()
    whole = {path.name for path in tmp_path.iterdir()}
    (tmp_path / "ckpt-4_temp").mkdir()
    (tmp_path / "ckpt-4_temp" / "part-00000-of-00001.data-00000-of-00001").touch()
    (tmp_path / "ckpt-4.data-00000-of-00001.tempstate123").touch()
    _, _, later = make(tmp_path)
    later.remove_unfinished()
    assert {path.name for path in tmp_path.iterdir()} == whole
    assert later.resume() == 3


class ForgetfulNetwork(keras.layers.Layer):
    """Holds a layer where checkpoints do not look."""

    def __init__(self):
        super().__init__()
        self.layers_in_a_list = [keras.layers.Dense(2)]
        self.layers_in_a_list[0].build((None, 3))
        self.built = True


def test_networks_that_would_not_be_saved_whole_are_refused():
    with pytest.raises(ValueError, match="2 of the network's 2 variables would not be saved"):
        require_every_variable(ForgetfulNetwork())


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "resnet18", "norm": "gn"},
        {"backbone": "resnet18", "norm": "bn", "fpn_norm": "bn"},
        {"backbone": "resnet50", "norm": "frozen_bn"},
        {"backbone": "resnet18", "head_norm": "frozen_bn", "box_num_convs": 4, "box_num_fcs": 1},
        {"backbone": "resnet18", "rpn_num_convs": 2, "system": "mask_rcnn"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_variable_of_the_real_network_comes_back(tmp_path, settings):
    narrow = {"num_classes": 3, "backbone_width": 8, "fpn_channels": 8, "head_dim": 8}
    config = ModelConfig(**narrow, **settings)
    saved, restored = (
        build_network(Params(model=config, data=DataConfig(seed=seed))) for seed in (1, 2)
    )
    rng = np.random.default_rng(0)
    for variable in saved.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(variable.dtype))
    require_every_variable(saved)
    path = tf.train.Checkpoint(network=saved).save(str(tmp_path / "ckpt"))
    load_network(restored, path)
    for one, two in zip(weights_of(saved), weights_of(restored), strict=True):
        np.testing.assert_array_equal(one, two)


def flip_a_bit(data, index):
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def cut_off(data, index):
    data.write_bytes(data.read_bytes()[:-20])


def lose_the_data(data, index):
    data.unlink()


def cut_off_the_index(data, index):
    index.write_bytes(index.read_bytes()[:-30])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, lose_the_data, cut_off_the_index])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys, damage):
    network, updater, checkpoints = make(tmp_path)
    for step in (3, 6):
        change(network, updater)
        checkpoints.step.assign(step)
        checkpoints.save()
        if step == 3:
            expected = weights_of(network)
    damage(tmp_path / "ckpt-6.data-00000-of-00001", tmp_path / "ckpt-6.index")
    for resume in (True, False):
        network, updater, later = make(tmp_path)
        assert (later.resume() if resume else later.load_for_evaluation()) == 3
        assert later.loaded.endswith("ckpt-3")
        for weight, other in zip(weights_of(network), expected, strict=True):
            np.testing.assert_array_equal(weight, other)
        warning = capsys.readouterr().err
        assert warning.startswith("Warning: Checkpoint ") and "ckpt-6 is damaged (" in warning
    # A training that comes to this step again saves it whole.
    later.step.assign(6)
    later.save()
    assert make(tmp_path)[2].resume() == 6
    assert not capsys.readouterr().err


def test_if_all_checkpoints_are_damaged_nothing_starts_from_scratch(tmp_path):
    _, _, checkpoints = make(tmp_path)
    checkpoints.step.assign(3)
    checkpoints.save()
    cut_off(tmp_path / "ckpt-3.data-00000-of-00001", None)
    with pytest.raises(UserError, match="All checkpoints in --model_dir=.* are damaged"):
        make(tmp_path)[2].resume()
    with pytest.raises(UserError, match="ckpt-3 is damaged"):
        make(tmp_path)[2].load_for_evaluation(str(tmp_path / "ckpt-3"))
