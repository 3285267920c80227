"""The processes that train together, as TF_CONFIG describes them.

Each has its own devices and its share of the images. One of them, the chief, writes all files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re

from data.errors import UserError

_CHIEF, _WORKER = "chief", "worker"
_TASK = re.compile(r"/task:(\d+)")
_EXAMPLE = (
    '{"cluster": {"worker": ["host1:9000", "host2:9000"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process among those that train together.

    Attributes:
        num_workers: number of processes, the chief included.
        index: number of this process, from 0.
    """

    num_workers: int = 1
    index: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0


ALONE = Cluster()


def find_cluster(distribution: str) -> Cluster:
    """Finds this process's place among those that train together.

    Args:
        distribution: value of `--distribution`; "auto" and "multi_worker" read TF_CONFIG, whose
            other use, as on a TPU VM, is none of this program's.

    Raises:
        UserError: TF_CONFIG does not describe workers, or "multi_worker" lacks it.
    """
    text = os.environ.get("TF_CONFIG", "")
    if distribution not in ("auto", "multi_worker"):
        return ALONE
    if not text and distribution == "multi_worker":
        raise UserError(
            "--distribution=multi_worker needs the environment variable TF_CONFIG on every worker, "
            f"such as {_EXAMPLE}."
        )
    return _parse(text) if text else ALONE


def describe_loss(cluster: Cluster, message: str) -> UserError:
    """Makes the error of this worker when another has left, from TensorFlow's message."""
    lost = sorted({int(number) for number in _TASK.findall(message)} - {cluster.index})
    workers = f"worker {', '.join(map(str, lost))}" if lost else "another worker"
    return UserError(
        f"The connection to {workers} was lost: it was stopped, has failed (see its output) or "
        "cannot be reached. Run the same command on all workers again to continue from the "
        "latest checkpoint."
    )


def _parse(text: str) -> Cluster:
    try:
        config = json.loads(text)
        jobs, task = config.get("cluster", {}), config.get("task", {})
        sizes = {job: len(addresses) for job, addresses in jobs.items()}
        job, index = task.get("type", _WORKER), int(task.get("index", 0))
    except (AttributeError, TypeError, ValueError) as error:
        raise _refusal(f"cannot be read ({error})") from None
    if not sizes:
        return ALONE
    if foreign := sizes.keys() - {_CHIEF, _WORKER}:
        raise _refusal(f"has the job {sorted(foreign)[0]!r}, which this program does not have")
    if not 0 <= index < sizes.get(job, 0):
        raise _refusal(f"has the task {job} {index}, which its cluster does not have")
    chiefs = sizes.get(_CHIEF, 0)
    if chiefs > 1:
        raise _refusal(f"has {chiefs} chiefs")
    place = index if job == _CHIEF else chiefs + index
    return Cluster(sum(sizes.values()), place)


def _refusal(problem: str) -> UserError:
    return UserError(f"TF_CONFIG {problem}; it should look like {_EXAMPLE}.")
