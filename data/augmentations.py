"""The augmentations that `--augmentations` names, beyond resizing, cropping and mirroring.

An augmentation is one function, in graph operations alone, and one line here: the word that users
write is the function's name, and beside it stands its module, which is imported only when the
augmentation is used. There are two kinds:
- `COLOURS` draw a map of colours: seed int32 [2] -> `data.photometric.ColourMap`.
- `SCENES` change a picture on its canvas, perhaps with the help of a second one, which is drawn on
  the same canvas when it is called for: scene, second, seed int32 [2] -> scene, where scene is a
  `data.scenes.Scene` and second a function without arguments that returns one.

What moves pixels is no matter of theirs: it is the one affine map of `data/augment.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping

COLOURS = {"photometric_distort": "photometric"}
SCENES = {"copy_paste": "copy_paste"}
AUGMENTATIONS = (*COLOURS, *SCENES)


def find_augmentations(names: Iterable[str], table: Mapping[str, str]) -> list[Callable]:
    """The functions of those names that a table has, in order."""
    return [
        getattr(importlib.import_module(f"{__package__}.{table[name]}"), name)
        for name in names
        if name in table
    ]
