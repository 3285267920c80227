"""The table of systems, and that nothing but it reads the network's settings."""

import ast
import pathlib

import numpy as np
import pytest
from toy_batch import toy_features, toy_params

from model import config, systems

ROOT = pathlib.Path(__file__).parents[2]


def test_what_is_known_of_systems_is_what_they_are_made_of():
    assert config.SYSTEMS.keys() == systems.SYSTEMS.keys()
    for name, system in systems.SYSTEMS.items():
        assert config.SYSTEMS[name].has_masks == ("mask_head" in system.heads)


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_a_system_has_the_outputs_of_its_heads(name):
    network = systems.build_network(toy_params(system=name))
    assert network.head_names == tuple(systems.SYSTEMS[name].heads)
    found = network.detect(toy_features(batch=1))
    assert ("detection_masks" in found) == ("mask_head" in network.head_names)
    assert ("mask_ious" in found) == ("maskiou_head" in network.head_names)


def test_separable_convolutions_replace_all_of_the_pyramid_and_the_heads():
    network = systems.build_network(toy_params(separable_convs=True, box_num_convs=1))
    kernels = {
        path: tuple(variable.shape)
        for part in (network.fpn, network.rpn_head, *network.heads)
        for path, variable in ((v.path, v) for v in part.decayed_variables)
        if len(variable.shape) == 4
    }
    assert sum(shape[:2] == (3, 3) for shape in kernels.values()) == 4 + 1 + 1 + 4 + 4
    for path, shape in kernels.items():
        assert shape[:2] != (3, 3) or shape[3] == 1, path
    losses = network.detect(toy_features(batch=1))
    assert np.isfinite(losses["mask_ious"]).all()


def test_only_systems_reads_the_settings_of_the_network():
    readers = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "model").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in ("model.config", "data.config")
    }
    # The importer compares them with those that weights were trained under.
    assert readers == {"model/systems.py", "model/importers/report.py"}
