"""The tables of stages and programs agree, and flags become settings."""

import importlib

import pytest
from absl import flags

from tools.benchmarks.peers import PEERS
from tools.benchmarks.stages import STAGES, Settings, stream
from tools.benchmarks.workloads import WORKLOADS, define_flags, read_settings


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
