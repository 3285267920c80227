"""Commands of a job, and how they are printed so that they can be pasted into a shell."""

from __future__ import annotations

import os
import shlex
from typing import NamedTuple

from tools.cloud import scripts
from tools.cloud.job import MODULE, Job

Command = tuple[str, ...]
_WIDTH = 100
_END = "END_OF_FILE"
# The repository, or in an installed wheel the package above this project's.
_HOME = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_PACKAGES = ("configs", "data", "model", "tools", "trainer")


class Step(NamedTuple):
    """A command.

    Attributes:
        title: what it does.
        command: program and arguments.
        text: its standard input.
        source: command whose output is its standard input instead.
    """

    title: str
    command: Command
    text: str | None = None
    source: Command | None = None


def format_step(step: Step) -> str:
    """Formats a step for a shell, below its title as a comment."""
    text = _format_command(step.command)
    if step.source:
        text = f"{_format_command(step.source)} \\\n  | {text}"
    if step.text is not None:
        text += f" <<'{_END}'\n{step.text}{_END}"
    return f"# {step.title}\n{text}\n"


def _format_command(command: Command) -> str:
    quoted = [_quote(part) for part in command]
    line = " ".join(quoted)
    if len(line) <= _WIDTH:
        return line
    lines = quoted[:1]
    for part in quoted[1:]:
        if part.startswith("--"):
            lines.append(part)
        else:
            lines[-1] += f" {part}"
    return " \\\n  ".join(lines)


def _quote(part: str) -> str:
    name, equals, value = part.partition("=")
    if part.startswith("--") and equals and value:
        return f"{shlex.quote(name)}={shlex.quote(value)}"
    return shlex.quote(part)


def list_uploads(job: Job, delete: Command = ()) -> list[Step]:
    """Lists the steps that copy the project and the job's files to its folder."""
    archive = Step(
        "Copy the project",
        _to_storage(job, scripts.ARCHIVE),
        source=_pack(),
    )
    files = scripts.list_files(job, delete)
    return [archive] + [
        Step(f"Copy {name}", _to_storage(job, name), text=text) for name, text in files.items()
    ]


def _pack() -> Command:
    """Packs the packages, those of an installed wheel below the name of the one that has them."""
    root, names = _HOME, _PACKAGES
    if "." in MODULE.removesuffix("trainer.main"):
        root, below = os.path.dirname(_HOME), os.path.basename(_HOME)
        names = tuple(f"{below}/{name}" for name in _PACKAGES)
    return ("tar", "--create", "--gzip", "--exclude=__pycache__", f"--directory={root}", *names)


def _to_storage(job: Job, name: str) -> Command:
    project = [f"--project={job.project}"] if job.project else []
    return ("gcloud", "storage", "cp", "-", f"{job.folder}/{name}", *project, "--quiet")
