"""What a thread makes before it is asked for."""

import threading

import pytest

from trainer.ahead import ahead


@pytest.mark.parametrize("count", [1, 2, 5])
def test_so_many_of_the_next_are_made_while_one_is_used(count):
    started = [threading.Event() for _ in range(8)]

    def make():
        for number, event in enumerate(started):
            event.set()
            yield number

    found = []
    for number in ahead(make(), count):
        assert all(event.wait(10) for event in started[number : number + count + 1])
        assert not any(event.is_set() for event in started[number + count + 1 :])
        found.append(number)
    assert found == list(range(8))


def test_a_failure_stands_where_the_item_would():
    found = []
    with pytest.raises(ZeroDivisionError):
        for item in ahead((1 / number for number in [1, 2, 0, 4]), 3):
            found.append(item)
    assert found == [1, 0.5]


def test_what_is_left_early_ends_its_thread():
    before = threading.active_count()
    for _ in ahead(iter(range(100))):
        break
    items = ahead(iter(range(100)), 3)
    next(items)
    items.close()
    assert threading.active_count() == before
    assert list(ahead([])) == []
