"""The tables of stages and programs agree, and flags become settings."""

import importlib
import types

import numpy as np
import pytest
from absl import flags

from data.config import DataConfig
from data.errors import UserError
from model.config import ModelConfig
from tools.benchmarks.peers import PEERS
from tools.benchmarks.stages import STAGES, Settings, stream
from tools.benchmarks.workloads import WORKLOADS, define_flags, make, read_settings
from trainer.config import Params
from trainer.flags import parse_flags


def test_every_stage_has_a_workload():
    assert WORKLOADS.keys() == STAGES.keys()


@pytest.mark.parametrize("name", PEERS)
def test_peers_offer_the_stages_of_the_table(name):
    peer = importlib.import_module(f"tools.benchmarks.peers.{name}")
    assert peer.WORKLOADS.keys() == set(PEERS[name]) <= STAGES.keys()
    assert peer.PACKAGES


def test_every_setting_is_a_flag():
    values = flags.FlagValues()
    define_flags(values)
    values(["benchmark", "--image_size=64", "--kind=bbox"])
    assert read_settings(values) == Settings(image_size=64, kind="bbox")


def test_a_stream_takes_as_many_images_as_asked_and_one_item_at_least():
    items = iter(range(100))
    assert stream(items, images=10, images_per_item=4)() == 8
    assert next(items) == 2
    assert stream(items, images=1, images_per_item=4)() == 4
    assert next(items) == 4


def test_a_network_with_random_weights_detects_all_that_it_may(monkeypatch):
    found = []
    added = "trainer.coco_results.CocoResults.add"
    monkeypatch.setattr(added, lambda _, image: found.append(image))
    params = parse_flags(["benchmark", "--backbone=resnet18", "--backbone_width=16"])
    assert make("predict", params, Settings(image_size=192, batch_size=1))() == 1
    assert [int(image["num_detections"]) for image in found] == [100]


@pytest.mark.parametrize("found", [100, 99])
def test_an_export_must_find_all_that_it_may(monkeypatch, found):
    params = Params(data=DataConfig(canvases=("64x64",)), model=ModelConfig(num_classes=3))
    seen = []

    def detect(features):
        seen.append({name: value.shape for name, value in features.items()})
        return {"num_detections": np.array([found])}

    opened = types.SimpleNamespace(params=params, detect=detect)
    monkeypatch.setattr("trainer.runtimes.open_export", {"m.tflite": opened}.get)
    settings = Settings(image_size=64, exports="m.tflite")
    if found < 100:
        with pytest.raises(UserError, match="m.tflite finds 99 of 100 objects in noise"):
            make("export", params, settings)
    else:
        assert make("export", params, settings)() == 1
        assert seen == [{"image": (1, 64, 64, 3), "image_info": (1, 5)}] * 2
