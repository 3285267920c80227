"""How a setting is declared: its default, the text its flag shows, and the check of its value.

A settings class is a frozen dataclass whose fields are made by `setting` and whose `__post_init__`
calls `check_settings`. What concerns several settings at once is declared with one of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

# TensorFlow counts and calculates in these.
_LARGEST_INTEGER = 2**31 - 1
_LEAST_FLOAT, _LARGEST_FLOAT = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127


class Check(NamedTuple):
    """What a setting's value has to be: in words, and as a test."""

    expected: str
    holds: Callable[[object], bool]


class Relation(NamedTuple):
    """What a setting's value has to be beside the others: in words, and as a test of the settings.

    Attributes:
        expected: in words, of the value and the settings that it belongs to.
        holds: the test, of the same.
    """

    expected: Callable[[object, object], str]
    holds: Callable[[object, object], bool]


ANYTHING = Check("anything", lambda value: True)
POSITIVE = Check("a positive number", lambda value: value > 0)
NOT_NEGATIVE = Check("0 or more", lambda value: value >= 0)
SHARE = Check("0 to 1", lambda value: 0 <= value <= 1)
POSITIVE_SHARE = Check("above 0, at most 1", lambda value: 0 < value <= 1)
SHARE_BELOW_ONE = Check("0 to 1, but not 1", lambda value: 0 <= value < 1)
# What every number has to be, by its type.
_NUMBERS = (
    (int, Check(f"at most {_LARGEST_INTEGER}", lambda value: abs(value) <= _LARGEST_INTEGER)),
    (float, Check("finite numbers", math.isfinite)),
    (
        float,
        Check(
            "numbers that single precision can hold, 0 or 1.2e-38 to 3.4e38 in size",
            lambda value: value == 0 or _LEAST_FLOAT <= abs(value) <= _LARGEST_FLOAT,
        ),
    ),
)


def one_of(*choices: str) -> Check:
    """One of the words listed."""
    return Check("one of " + ", ".join(choices), lambda value: value in choices)


def between(lowest: float, highest: float) -> Check:
    """A number from `lowest` to `highest`, both included."""
    return Check(f"{lowest} to {highest}", lambda value: lowest <= value <= highest)


def each(check: Check, count: int | None = None) -> Check:
    """A tuple, not empty, of `count` items where it is given, for each of which `check` holds."""
    number = "at least one value" if count is None else f"{count} values"
    return Check(
        f"{number}, each {check.expected}",
        lambda value: len(value) == (count or max(len(value), 1)) and all(map(check.holds, value)),
    )


def at_most(other: str) -> Relation:
    """No larger than another setting."""
    return Relation(
        lambda value, config: f"at most --{other}={_spell(getattr(config, other))}",
        lambda value, config: value <= getattr(config, other),
    )


def room_in(other: str) -> Relation:
    """A share of another setting that comes to one at least."""
    return Relation(
        lambda value, config: f"room for a positive among --{other}={getattr(config, other)}",
        lambda value, config: int(getattr(config, other) * value) >= 1,
    )


def setting(
    default, help: str, check: Check = ANYTHING, relation: Relation | None = None, **traits: bool
):
    """A dataclass field that also carries what its flag has to know.

    Args:
        default: the value when the flag is not given.
        help: the flag's meaning.
        check: what the value has to be by itself.
        relation: what it has to be beside the other settings of its class.
        traits: is_path and changes_predictions, as the functions below set them.
    """
    known = {"is_path": False, "changes_predictions": False}
    metadata = {"help": help, "check": check, "relation": relation, **known, **traits}
    return dataclasses.field(default=default, metadata=metadata)


def predictive_setting(
    default, help: str, check: Check = ANYTHING, relation: Relation | None = None
):
    """A setting with another value of which the same weights find something else."""
    return setting(default, help, check, relation, changes_predictions=True)


def path_setting(help: str):
    """A setting that names a file or a folder; a ~ at its head is the home folder."""
    return setting("", help, is_path=True)


class SettingError(ValueError):
    """A setting has a value that it cannot have; the message is a sentence that names both."""


def require(condition: bool, name: str, value, expected: str) -> None:
    """Raises a `SettingError` that names the setting, its value and what was expected of it."""
    if not condition:
        raise SettingError(f"--{name}={_spell(value)}: expected {expected}.")


def check_settings(config) -> None:
    """Checks every setting of a settings class by itself, and then beside the others.

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
    """The value as it stands on a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
