"""Jobs in several processes: order, progress, errors, and processes that die."""

import os

import pytest

from data.errors import UserError
from data.processes import run_jobs


def square(number, advance):
    advance(number)
    return number**2


def fail_at_two(number, advance):
    if number == 2:
        raise UserError("two is too many.")
    advance(1)
    return number


def die(number, advance):
    os._exit(1)


@pytest.mark.parametrize("num_processes", [0, 1, 2, 5])
def test_results_are_in_the_order_of_the_jobs(num_processes, capsys):
    assert run_jobs(square, [3, 1, 2], num_processes, ("Squaring", 6)) == [9, 1, 4]
    assert capsys.readouterr().err.endswith("Squaring: 6 of 6 images\n")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_error_of_a_job_is_raised_unchanged(num_processes):
    with pytest.raises(UserError, match=r"^two is too many\.$"):
        run_jobs(fail_at_two, [1, 2, 3, 4], num_processes, ("Counting", 4))


def test_a_process_that_dies_is_an_error_for_the_user():
    with pytest.raises(UserError, match="a worker process died.*fewer --num_processes"):
        run_jobs(die, [1, 2], 2, ("Dying", 2))
