"""A server of a tf.data service that dies is named within a bounded time."""

import os
import signal

import pytest
import tensorflow as tf
from service_processes import running_servers, start_service

from data import data_service
from data.data_service import run_on_workers, watched
from data.errors import UserError

# More than a worker can have made when the first one is taken.
COUNT = 2000


@pytest.fixture(scope="module")
def start():
    with running_servers() as start:
        yield start


@pytest.fixture
def begin(start, monkeypatch):
    """Starts to read numbers from a service whose servers get two seconds to come back."""
    for name, value in {"TO_ANSWER": 0.5, "BETWEEN_CHECKS": 0.3, "TO_RETURN": 2.0}.items():
        monkeypatch.setattr(data_service, f"SECONDS_{name}", value)

    def begin_reading(count=COUNT):
        dispatcher, workers = start_service(start)
        service = f"grpc://{dispatcher.address}"
        numbers = watched(run_on_workers(tf.data.Dataset.range(count), service), service)
        next(numbers)
        return numbers, service, dispatcher, workers

    return begin_reading


def test_a_worker_that_stays_away_is_named(begin, capsys):
    numbers, service, _, (lost, _) = begin()
    os.kill(lost.process_id, signal.SIGKILL)
    said = f"the worker {lost.address} of --data_service={service}"
    with pytest.raises(UserError, match=f"^{said} has not answered for . seconds, so images are"):
        list(numbers)
    assert f"Warning: {said} does not answer, so images are missing;" in capsys.readouterr().err


def test_a_worker_that_comes_back_is_waited_for(begin, monkeypatch, capsys):
    numbers, _, _, (lost, _) = begin()
    os.kill(lost.process_id, signal.SIGSTOP)
    answers = data_service._answers

    def ask_and_continue(address):
        answered = answers(address)
        if not answered:
            os.kill(lost.process_id, signal.SIGCONT)
        return answered

    monkeypatch.setattr(data_service, "SECONDS_TO_RETURN", 120.0)
    monkeypatch.setattr(data_service, "_answers", ask_and_continue)
    assert len({int(number) for number in numbers}) == COUNT - 1
    assert f"the worker {lost.address} of" in capsys.readouterr().err


def test_an_endless_dataset_ends_without_all_workers_only(begin):
    numbers, _, _, workers = begin(tf.int64.max)
    os.kill(workers[0].process_id, signal.SIGKILL)
    for _ in range(COUNT):
        next(numbers)
    os.kill(workers[1].process_id, signal.SIGKILL)
    with pytest.raises(UserError, match="the worker .* has not answered for . seconds"):
        list(numbers)


def test_a_dispatcher_that_dies_is_named(begin):
    numbers, service, dispatcher, _ = begin()
    os.kill(dispatcher.process_id, signal.SIGKILL)
    with pytest.raises(UserError, match=f"^the dispatcher at --data_service={service} has not"):
        list(numbers)


def test_without_a_service_nothing_is_watched():
    assert list(watched([1, 2], "")) == [1, 2]
