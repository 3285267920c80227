"""Every name of the table finds its function, and others are refused."""

import pytest

from data.augmentations import AUGMENTATIONS, COLOURS, SCENES, find_augmentations
from data.config import DataConfig


def test_every_name_is_a_function_with_its_place():
    names = tuple(reversed(AUGMENTATIONS))
    found = find_augmentations(names, COLOURS) + find_augmentations(names, SCENES)
    assert sorted(place for place, _ in found) == list(range(len(names)))
    assert {names[place]: function.__name__ for place, function in found} == {
        name: name for name in names
    }


@pytest.mark.parametrize("names", [("blur",), ("photometric_distort", "photometric_distort")])
def test_unknown_and_repeated_names_are_refused(names):
    with pytest.raises(ValueError, match="expected names among .*photometric_distort.*each once"):
        DataConfig(augmentations=names)
