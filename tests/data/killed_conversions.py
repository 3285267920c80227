"""Kills conversions before each of their changes to the disk in turn, and runs them again.

A program of its own, since it forks: python killed_conversions.py FOLDER, which is empty.
"""

import contextlib
import itertools
import os
import pathlib
import shutil
import sys

from coco_files import contents, settings_of

from data.conversion import convert
from data.errors import UserError
from data.manifest import check_shards, expand_pattern, find_manifest

_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
_KILLED = 9


def main() -> None:
    """Goes through ways from one conversion to another, or to a third after the kill."""
    root = pathlib.Path(sys.argv[1])
    two, three, four = ({"num_shards": count} for count in (2, 3, 4))
    boxes = {**two, "include_masks": False}
    for ways in ((four, two, two), (two, four, four), (four, two, three), (two, boxes, boxes)):
        steps = _kill_at_every_step(root, *ways)
        assert steps > 20, steps
        print(*ways, steps, flush=True)


def _kill_at_every_step(root, before, killed, after) -> int:
    whole = [_convert(root, changes) for changes in (before, killed, after)]
    pattern = f"{root}/out/train-*"
    for step in itertools.count():
        shutil.rmtree(root / "out", ignore_errors=True)
        shutil.copytree(whole[0], root / "out")
        if _convert_until(step, settings_of(root, **killed)):
            return step
        _check_that_nothing_is_mixed(pattern, whole[:2])
        convert(settings_of(root, **after))
        assert contents(root / "out") == contents(whole[2]), (before, killed, after, step)
        check_shards(pattern)
        assert len(find_manifest(pattern).shards) == after["num_shards"]


def _convert(root, changes):
    """The folder of a conversion that nothing disturbs."""
    folder = root / "-".join(map(str, changes.values()))
    convert(settings_of(root, output_prefix=str(folder / "train"), **changes))
    return folder


def _convert_until(step: int, settings) -> bool:
    """Converts in a process that dies before its `step`-th change; whether it got to the end."""
    process_id = os.fork()
    if process_id:
        return os.waitpid(process_id, 0)[1] == 0
    sys.addaudithook(_Death(step))
    with open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence):
        convert(settings)
    os._exit(0)


class _Death:
    def __init__(self, steps_left: int):
        self._steps_left = steps_left

    def __call__(self, event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in _CHANGES):
            return
        if not self._steps_left:
            os._exit(_KILLED)
        self._steps_left -= 1


def _check_that_nothing_is_mixed(pattern, folders):
    """What a training would accept is all of one conversion."""
    try:
        check_shards(pattern)
        paths = expand_pattern(pattern)
        accepted = {path.name: path.read_bytes() for path in map(pathlib.Path, paths)}
    except UserError:
        return
    assert any(
        accepted == {name: content for name, content in contents(folder).items() if "-of-" in name}
        for folder in folders
    ), sorted(accepted)


if __name__ == "__main__":
    main()
