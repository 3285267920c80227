"""What counts as a number."""

from data.numbers import is_finite_number, is_integer


def test_finite_numbers():
    assert is_finite_number(0) and is_finite_number(-2.5)
    assert not any(map(is_finite_number, [float("nan"), float("-inf"), "1", None, True]))


def test_integers():
    assert is_integer(0) and is_integer(-(2**63))
    assert not any(map(is_integer, [2**63, 1.0, True, "1", None]))
