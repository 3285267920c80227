"""TF_CONFIG and what it makes of this process."""

import json

import pytest

from data.errors import UserError
from trainer.cluster import Cluster, describe_loss, find_cluster


def tf_config(kind, index, **jobs):
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (tf_config("worker", 0, worker=["a:1", "b:1"]), Cluster(2, 0)),
        (tf_config("worker", 1, worker=["a:1", "b:1"]), Cluster(2, 1)),
        (tf_config("chief", 0, chief=["c:1"], worker=["a:1", "b:1"]), Cluster(3, 0)),
        (tf_config("worker", 1, chief=["c:1"], worker=["a:1", "b:1"]), Cluster(3, 2)),
        (tf_config("worker", 0, worker=["a:1"]), Cluster(1, 0)),
        ("{}", Cluster(1, 0)),
        ("", Cluster(1, 0)),
    ],
)
def test_the_chief_comes_first(monkeypatch, text, expected):
    monkeypatch.setenv("TF_CONFIG", text)
    assert find_cluster("auto") == expected
    assert expected.is_chief == (expected.index == 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{cluster", "cannot be read"),
        ("[]", "cannot be read"),
        (tf_config("worker", "first", worker=["a:1"]), "cannot be read"),
        (tf_config("worker", 2, worker=["a:1", "b:1"]), "has the task worker 2"),
        (tf_config("chief", 0, worker=["a:1"]), "has the task chief 0"),
        (tf_config("worker", 0, worker=["a:1"], ps=["b:1"]), "has the job 'ps'"),
        (tf_config("chief", 0, chief=["a:1", "b:1"], worker=["c:1"]), "has 2 chiefs"),
    ],
)
@pytest.mark.parametrize("distribution", ["auto", "multi_worker"])
def test_an_unusable_tf_config_is_named(monkeypatch, distribution, text, words):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=f"TF_CONFIG {words}.*should look like"):
        find_cluster(distribution)


def test_several_workers_need_a_tf_config(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="--distribution=multi_worker needs.*TF_CONFIG"):
        find_cluster("multi_worker")


@pytest.mark.parametrize("distribution", ["one_device", "mirrored", "tpu"])
def test_one_machine_does_not_read_tf_config(monkeypatch, distribution):
    monkeypatch.setenv("TF_CONFIG", tf_config("worker", 1, worker=["a:1", "b:1"]))
    assert find_cluster(distribution) == Cluster()


def test_a_lost_worker_is_named():
    message = "tasks are unhealthy:\n/job:worker/replica:0/task:1\nwhile /job:worker/task:0 waits"
    assert str(describe_loss(Cluster(2, 0), message)).startswith("The connection to worker 1 was")
    assert "to another worker was lost" in str(describe_loss(Cluster(2, 0), "no names"))
