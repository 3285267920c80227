"""The augmentations that `--augmentations` names, beyond resizing, cropping and mirroring.

An augmentation is one function, in graph operations only, and one line here: the word that users
write is the function's name, and next to it stands its module, which is imported only when the
augmentation is used. There are two kinds:
- `COLOURS` draw a map of colours: seed int32 [2] -> `data.photometric.ColourMap`.
- `SCENES` change an image on its canvas and may use a second image, drawn on the same canvas on
  request: scene, second, seed int32 [2] -> scene, where scene is a `data.scenes.Scene` and second a
  function without arguments that returns one.

They never move pixels: that is left to the one affine map of `data/augment.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping

COLOURS = {"photometric_distort": "photometric"}
SCENES = {"copy_paste": "copy_paste"}
AUGMENTATIONS = (*COLOURS, *SCENES)


def find_augmentations(names: Iterable[str], table: Mapping[str, str]) -> list[Callable]:
    """Imports the functions with these names in a table, in order."""
    return [
        getattr(importlib.import_module(f"{__package__}.{table[name]}"), name)
        for name in names
        if name in table
    ]
