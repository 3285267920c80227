"""Declares settings: default, help text of the flag, and check of the value.

A settings class is a frozen dataclass whose fields are made by `setting` and whose `__post_init__`
calls `check_settings`. A check that involves several settings is declared with one of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

# Limits of TensorFlow's int32 and float32.
_LARGEST_INTEGER = 2**31 - 1
_LEAST_FLOAT, _LARGEST_FLOAT = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127


class Check(NamedTuple):
    """A requirement on a setting's value: in words, and as a test."""

    expected: str
    holds: Callable[[object], bool]


class Relation(NamedTuple):
    """A requirement on a setting's value that involves other settings.

    Attributes:
        expected: describes it, given the value and all settings of the class.
        holds: tests it, given the same.
    """

    expected: Callable[[object, object], str]
    holds: Callable[[object, object], bool]


ANYTHING = Check("anything", lambda value: True)
POSITIVE = Check("a positive number", lambda value: value > 0)
NOT_NEGATIVE = Check("0 or more", lambda value: value >= 0)
SHARE = Check("0 to 1", lambda value: 0 <= value <= 1)
POSITIVE_SHARE = Check("above 0, at most 1", lambda value: 0 < value <= 1)
SHARE_BELOW_ONE = Check("0 to 1, but not 1", lambda value: 0 <= value < 1)
# Requirements on all numbers, by type.
_NUMBERS = (
    (int, Check(f"at most {_LARGEST_INTEGER}", lambda value: abs(value) <= _LARGEST_INTEGER)),
    (float, Check("finite numbers", math.isfinite)),
    (
        float,
        Check(
            "numbers in single precision's range: 0, or a magnitude of 1.2e-38 to 3.4e38",
            lambda value: value == 0 or _LEAST_FLOAT <= abs(value) <= _LARGEST_FLOAT,
        ),
    ),
)


def one_of(*choices: str) -> Check:
    """Makes the check for one of several words."""
    return Check("one of " + ", ".join(choices), lambda value: value in choices)


def between(lowest: float, highest: float) -> Check:
    """Makes the check for a number from `lowest` to `highest`, both included."""
    return Check(f"{lowest} to {highest}", lambda value: lowest <= value <= highest)


def each(check: Check, count: int | None = None) -> Check:
    """Makes the check for a non-empty tuple, of `count` items if given, that all pass `check`."""
    number = "at least one value" if count is None else f"{count} values"
    return Check(
        f"{number}, each {check.expected}",
        lambda value: len(value) == (count or max(len(value), 1)) and all(map(check.holds, value)),
    )


def at_most(other: str) -> Relation:
    """Makes the relation: no larger than another setting."""
    return Relation(
        lambda value, config: f"at most --{other}={_spell(getattr(config, other))}",
        lambda value, config: value <= getattr(config, other),
    )


def room_in(other: str) -> Relation:
    """Makes the relation: a fraction of another setting that amounts to at least 1."""
    return Relation(
        lambda value, config: (
            f"a fraction that gives at least one positive among --{other}={getattr(config, other)}"
        ),
        lambda value, config: int(getattr(config, other) * value) >= 1,
    )


def setting(
    default, help: str, check: Check = ANYTHING, relation: Relation | None = None, **traits: bool
):
    """Makes a dataclass field that also has the properties of its flag.

    Args:
        default: the value if the flag is not given.
        help: the flag's meaning.
        check: requirement on the value itself.
        relation: requirement that involves other settings of its class.
        traits: is_path and changes_predictions, as the functions below set them.
    """
    known = {"is_path": False, "changes_predictions": False}
    metadata = {"help": help, "check": check, "relation": relation, **known, **traits}
    return dataclasses.field(default=default, metadata=metadata)


def predictive_setting(
    default, help: str, check: Check = ANYTHING, relation: Relation | None = None
):
    """Makes a setting that changes the predictions of given weights."""
    return setting(default, help, check, relation, changes_predictions=True)


def path_setting(help: str):
    """Makes a setting that names a file or a folder; a leading ~ means the home folder."""
    return setting("", help, is_path=True)


class SettingError(ValueError):
    """A setting has an invalid value; the message is a sentence that names both."""


def require(condition: bool, name: str, value, expected: str) -> None:
    """Raises a `SettingError` with setting, value and expectation if not `condition`."""
    if not condition:
        raise SettingError(f"--{name}={_spell(value)}: expected {expected}.")


def check_settings(config) -> None:
    """Checks every setting of a settings class, first by itself, then with the others.

    Raises:
        SettingError: a number is not finite or too large for TensorFlow, or a value does not pass
            its setting's check or relation; the message names the setting, its value and what was
            expected.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        items = value if isinstance(value, tuple) else (value,)
        for kind, check in _NUMBERS:
            numbers = [item for item in items if isinstance(item, kind)]
            require(all(map(check.holds, numbers)), field.name, value, check.expected)
        check = field.metadata["check"]
        require(check.holds(value), field.name, value, check.expected)
    for field in dataclasses.fields(config):
        if relation := field.metadata["relation"]:
            value = getattr(config, field.name)
            holds = relation.holds(value, config)
            require(holds, field.name, value, relation.expected(value, config))


def _spell(value) -> str:
    """Formats a value as on a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
