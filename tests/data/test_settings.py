"""Settings are checked where they are declared."""

import dataclasses
import math

import pytest

from data.settings import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    between,
    check_settings,
    each,
    one_of,
    setting,
)


@dataclasses.dataclass(frozen=True)
class Kettle:
    litres: float = setting(1.5, "Water.", POSITIVE)
    minutes: int = setting(3, "Time.", NOT_NEGATIVE)
    fill: float = setting(0.5, "Share filled.", SHARE)
    colour: str = setting("red", "Outside.", one_of("red", "blue"))
    steps: tuple[int, ...] = setting((1, 2), "Stages.", each(between(0, 9), 2))
    cups: tuple[float, ...] = setting((1.0,), "What it fills.", each(POSITIVE))

    def __post_init__(self):
        check_settings(self)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("litres", 0.0, "--litres=0.0: expected a positive number."),
        ("litres", math.nan, "--litres=nan: expected finite numbers."),
        ("litres", math.inf, "--litres=inf: expected finite numbers."),
        ("minutes", -1, "--minutes=-1: expected 0 or more."),
        ("minutes", 2**31, "--minutes=2147483648: expected at most 2147483647."),
        (
            "litres",
            1e-50,
            "--litres=1e-50: expected numbers in single precision's range: 0, or a magnitude of "
            "1.2e-38 to 3.4e38.",
        ),
        ("fill", 1.5, "--fill=1.5: expected 0 to 1."),
        ("colour", "green", "--colour=green: expected one of red, blue."),
        ("steps", (1,), "--steps=1: expected 2 values, each 0 to 9."),
        ("steps", (1, 10), "--steps=1,10: expected 2 values, each 0 to 9."),
        ("cups", (), "--cups=: expected at least one value, each a positive number."),
        ("cups", (1.0, math.nan), "--cups=1.0,nan: expected finite numbers."),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(name, value, said):
    with pytest.raises(ValueError) as error:
        Kettle(**{name: value})
    assert str(error.value) == said


def test_integers_beyond_every_float_are_refused_too():
    with pytest.raises(ValueError, match="expected at most 2147483647"):
        Kettle(minutes=10**400)


def test_good_values_pass():
    kettle = Kettle(litres=1e-9, minutes=0, fill=1.0, colour="blue", steps=(0, 9), cups=(2, 3.5))
    assert kettle.colour == "blue"
