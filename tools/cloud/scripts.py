"""Shell scripts that run on the machine of a job, in a folder that has the job's files.

install.sh installs the project into .venv, train.sh runs the trainer, and follow.sh shows its log.
On a TPU VM, follow.sh starts train.sh in the background, where it outlives a lost connection,
unless it runs already or has ended. While it trains, it holds a lock, which it inherits as
descriptor 9.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tools.cloud.job import (
    GPU_REQUIREMENTS,
    MODULE,
    POD_REQUIREMENTS,
    TPU_REQUIREMENTS,
    Job,
    TpuJob,
    VertexJob,
)

ARCHIVE, FLAGFILE = "project.tar.gz", "job.flags"
INSTALL, TRAIN, FOLLOW = "install.sh", "train.sh", "follow.sh"
# The last line of follow.sh; without it, the connection was lost.
EXIT_STATUS = "Exit status of the training: "
# After the training, the time for `submit_tpu.py` to delete the TPU before it deletes itself.
_GRACE_SECONDS = 900

_ON_ONE_HOST = """\
export NEXT_PLUGGABLE_DEVICE_USE_C_API=true
library=$(.venv/bin/python -c 'import libtpu; print(libtpu.get_library_path())')
export TF_PLUGGABLE_DEVICE_LIBRARY_PATH="$library"
"""
# TensorFlow connects to the servers on all hosts, this one included, which own the chips.
_ON_SEVERAL_HOSTS = "export TPU_LOAD_LIBRARY=0\n"


def list_files(job: Job, delete: Sequence[str] = ()) -> dict[str, str]:
    """Returns the job's text files by name.

    Args:
        job: what to run.
        delete: command that deletes the TPU.
    """
    own = _tpu_files(job, delete) if isinstance(job, TpuJob) else _vertex_files(job)
    return {FLAGFILE: "".join(f"{line}\n" for line in job.flagfile)} | own


def _tpu_files(job: TpuJob, delete: Sequence[str]) -> dict[str, str]:
    several = job.accelerator.has_several_hosts
    requirements = POD_REQUIREMENTS if several else TPU_REQUIREMENTS
    place = ("--distribution=tpu", f"--tpu={job.name if several else 'local'}")
    train = f"""\
{_ON_SEVERAL_HOSTS if several else _ON_ONE_HOST}\
{_trainer(job, *place)} 9>&-
echo $? > exit_status
exec 9>&-
sleep {_GRACE_SECONDS}
{shlex.join(delete)}
"""
    follow = f"""\
touch train.log
exec 9> lock
if flock --nonblock 9 && [ ! -e exit_status ]; then
  nohup setsid bash {TRAIN} >> train.log 2>&1 < /dev/null &
fi
exec 9>&-
tail --lines=+"$1" --follow train.log &
flock lock true
sleep 1
kill $!
[ -e exit_status ] && echo "{EXIT_STATUS}$(cat exit_status)"
"""
    return {INSTALL: _install(job, requirements), TRAIN: train, FOLLOW: follow}


def _vertex_files(job: VertexJob) -> dict[str, str]:
    return {INSTALL: _install(job, GPU_REQUIREMENTS), TRAIN: _trainer(job) + "\n"}


def _install(job: Job, requirements: Sequence[str]) -> str:
    return f"""\
set -e
tar --extract --gzip --file={ARCHIVE}
python3 -m pip install --quiet --user uv
"$HOME/.local/bin/uv" venv --quiet --allow-existing --python={job.python_version} .venv
"$HOME/.local/bin/uv" pip install --quiet --python=.venv/bin/python {shlex.join(requirements)}
"""


def _trainer(job: Job, *place: str) -> str:
    flags = [f"--flagfile={FLAGFILE}", *job.arguments, *place]
    return shlex.join([".venv/bin/python", "-m", MODULE, *flags])
