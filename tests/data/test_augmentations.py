"""Every name of the table finds its function, and others are refused."""

import pytest

from data.augmentations import AUGMENTATIONS, COLOURS, SCENES, find_augmentations
from data.config import DataConfig


def test_every_name_is_a_function():
    found = find_augmentations(AUGMENTATIONS, COLOURS) + find_augmentations(AUGMENTATIONS, SCENES)
    # Their draws are those of their names.
    assert [function.__name__ for function in found] == [*COLOURS, *SCENES]


@pytest.mark.parametrize("names", [("blur",), ("photometric_distort", "photometric_distort")])
def test_unknown_and_repeated_names_are_refused(names):
    with pytest.raises(ValueError, match="expected names among .*photometric_distort.*each once"):
        DataConfig(augmentations=names)
