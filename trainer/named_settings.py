"""Settings given in Python by the names of their flags, which override flagfiles or a record."""

from __future__ import annotations

import difflib
import numbers
import os
import typing
from collections.abc import Iterable, Mapping

from absl import flags

from data import files
from trainer.config import Params
from trainer.flagfiles import expand_flagfiles
from trainer.flags import Setting, Values, assign_flags, define_flags, list_settings, make_params

# Types that a value may have, by the type of its setting, and their description.
_TAKEN: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "True or False"),
    int: ((numbers.Integral,), "a whole number"),
    float: ((numbers.Real,), "a number"),
    str: ((str, os.PathLike), "a text"),
}


def choose_settings(given: Mapping[str, object], values: Values | None = None) -> Params:
    """Combines the settings given with `values` and defaults for the others.

    Args:
        given: Python values by the names of flags; lists may be used for tuples.
        values: values from a record or flagfiles.

    Raises:
        TypeError: there is no setting with such a name, or its value has a wrong type.
        ValueError: a setting has an invalid value.
    """
    settings = {setting.name: setting for setting in list_settings()}
    for name in given:
        if name not in settings:
            close = difflib.get_close_matches(name, settings, 1)
            hint = f"did you mean {close[0]}?" if close else "settings have the names of flags."
            raise TypeError(f"there is no setting {name}; {hint}")
    chosen = {name: setting.default for name, setting in settings.items()} | (values or {})
    chosen |= {name: _convert(settings[name], value) for name, value in given.items()}
    paths = [setting.name for setting in settings.values() if setting.is_path]
    return make_params(chosen | {name: files.expand(str(chosen[name])) for name in paths})


def read_flagfiles(paths: Iterable[str | os.PathLike[str]]) -> Values:
    """Reads the settings in flagfiles, of which later ones override earlier ones.

    Raises:
        ValueError: a file cannot be read, or a line is not a flag or has an invalid value.
    """
    flag_values = flags.FlagValues()
    define_flags(flag_values)
    arguments = expand_flagfiles([f"--flagfile={path}" for path in paths])
    return {name: flag_values[name].value for name in assign_flags(flag_values, arguments)}


def _convert(setting: Setting, value: object) -> object:
    """Converts the value to its setting's type.

    Raises:
        TypeError: it has a wrong type.
    """
    kind, is_tuple = setting.type, typing.get_origin(setting.type) is tuple
    if is_tuple:
        kind = typing.get_args(kind)[0]
    taken, words = _TAKEN[kind]
    items = value if is_tuple else [value]
    if not isinstance(items, list | tuple) or not all(
        isinstance(item, taken) and isinstance(item, bool) == (kind is bool) for item in items
    ):
        expected = f"a list, each item {words}" if is_tuple else words
        raise TypeError(f"{setting.name}={value!r}: expected {expected}.")
    converted = tuple(map(kind, items))
    return converted if is_tuple else converted[0]
