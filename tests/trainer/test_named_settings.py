"""Settings given in Python: names, types, and what overrides what."""

import pathlib

import numpy as np
import pytest

from trainer.config import Params
from trainer.named_settings import choose_settings, read_flagfiles


def test_given_over_values_over_defaults():
    params = choose_settings({"train_steps": 5}, {"train_steps": 7, "seed": 3})
    assert (params.train.train_steps, params.data.seed) == (5, 3)
    assert params.model == Params().model


def test_values_become_what_their_setting_is():
    params = choose_settings(
        {
            "canvases": ["64x96"],
            "anchor_sizes": (8, 16, 32, 64, 128),
            "learning_rate": 1,
            "seed": np.int64(3),
            "train_file_pattern": pathlib.Path("a/b"),
            "model_dir": "~/x",
        }
    )
    assert params.data.canvases == ("64x96",)
    assert params.data.anchor_sizes == (8.0, 16.0, 32.0, 64.0, 128.0)
    for value, kind in ((params.train.learning_rate, float), (params.data.seed, int)):
        assert type(value) is kind
    assert params.data.train_file_pattern == "a/b"
    assert params.train.model_dir == str(pathlib.Path.home() / "x")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"colour": "red"}, "there is no setting colour; settings have the names of flags"),
        ({"train_step": 3}, "there is no setting train_step; did you mean train_steps?"),
        ({"train_steps": "10"}, "train_steps='10': expected a whole number"),
        ({"train_steps": 10.0}, "train_steps=10.0: expected a whole number"),
        ({"train_steps": True}, "train_steps=True: expected a whole number"),
        ({"rescore": 1}, "rescore=1: expected True or False"),
        ({"learning_rate": None}, "learning_rate=None: expected a number"),
        ({"canvases": "64x96"}, "canvases='64x96': expected a list, each item a text"),
        ({"anchor_ratios": [1, "2"]}, r"anchor_ratios=\[1, '2'\]: expected a list, each item a n"),
    ],
)
def test_what_is_no_setting_is_refused(given, sentence):
    with pytest.raises(TypeError, match=sentence):
        choose_settings(given)


def test_values_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="^--train_steps=0: expected a positive number"):
        choose_settings({"train_steps": 0})


def test_later_flagfiles_override_earlier_ones(tmp_path):
    (tmp_path / "a.flags").write_text("--seed=1\n--train_steps=4")
    (tmp_path / "b.flags").write_text("--seed=2")
    read = read_flagfiles([tmp_path / "a.flags", tmp_path / "b.flags"])
    assert read == {"seed": 2, "train_steps": 4}
    (tmp_path / "c.flags").write_text("--sed=2")
    with pytest.raises(ValueError, match=r"c.flags:1: there is no flag --sed; did you mean --seed"):
        read_flagfiles([tmp_path / "c.flags"])
