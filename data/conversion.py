"""From a COCO file and a folder of images to a set of shards with their manifest.

A work item is a shard: a process reads, checks and writes the images of one shard alone, so memory
does not grow with the data set, and the bytes do not depend on how many processes there are.
Everything is made in the folder `P.partial` beside the shards, where an interrupted conversion
leaves each finished shard with a note of its checksum, and moves to its place when all of it is
done, the manifest last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from data import coco, manifest
from data.errors import UserError
from data.settings import require
from data.shards import ShardJob, ShardResult, build_shard


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What to convert, where to, and how."""

    image_dir: str
    annotations_file: str
    output_prefix: str  # P of P-00000-of-0000N.tfrecord
    num_shards: int
    include_masks: bool = True
    skip_invalid: bool = False  # leave out what is wrong instead of stopping at it
    num_processes: int = 1  # 0 and 1 work in this process

    def __post_init__(self):
        require(self.num_shards >= 1, "num_shards", self.num_shards, "1 or more")
        require(self.num_processes >= 0, "num_processes", self.num_processes, "0 or more")
        require(
            os.path.basename(self.output_prefix) != "",
            "output_file_prefix",
            self.output_prefix,
            "a path that ends in the first part of the shards' names, such as records/train",
        )

    @property
    def partial_dir(self) -> str:
        """Folder of the finished shards until all are done."""
        return f"{self.output_prefix}.partial"


class Interrupted(UserError):
    """The conversion stopped through no fault of its input; run again, it goes on."""


class _Stopped(Exception):
    """Another shard has failed, so this one need not be finished."""


def convert(settings: Conversion) -> manifest.Manifest:
    """Converts a data set; a rerun after an interruption goes on with the shards that are missing.

    Returns:
      The manifest, which is also written to `P.manifest.json`.

    Raises:
      UserError: something in the input cannot be used, or the output cannot be written. No files
        are left behind then, and what an earlier conversion wrote there is untouched.
    """
    with _partial_folder(settings):
        if not os.path.isdir(settings.image_dir):
            raise UserError(f"there is no folder {settings.image_dir}; check --image_dir.")
        skipped = coco.SkippedItems(tolerate=settings.skip_invalid)
        dataset = coco.load_dataset(settings.annotations_file, skipped)
        jobs = _plan(settings, dataset)
        results = _build_all(jobs, settings.num_processes, len(dataset.images))
        summary = _summarise(settings, dataset, skipped.items, results)
        _publish(settings, jobs, summary)
    return summary


@contextlib.contextmanager
def _partial_folder(settings: Conversion) -> Iterator[None]:
    """Makes the folder of unfinished work, and removes it unless there is something to resume."""
    folder = pathlib.Path(settings.partial_dir)
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "probe").touch()
        (folder / "probe").unlink()
        yield
    except Interrupted:
        raise
    except (UserError, OSError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot write to {folder.parent}: {error.strerror or error}; choose another "
            "--output_file_prefix or make room."
        ) from None
    shutil.rmtree(folder)


def _plan(settings: Conversion, dataset: coco.CocoDataset) -> list[ShardJob]:
    prefix = os.path.basename(settings.output_prefix)
    return [
        ShardJob(
            name=manifest.shard_name(prefix, index, settings.num_shards),
            build_dir=settings.partial_dir,
            final_dir=os.path.dirname(settings.output_prefix),
            image_dir=settings.image_dir,
            include_masks=settings.include_masks,
            skip_invalid=settings.skip_invalid,
            images=dataset.images[index :: settings.num_shards],
            categories={category["id"]: category for category in dataset.categories},
            input_sha256=dataset.sha256,
        )
        for index in range(settings.num_shards)
    ]


def _build_all(jobs: Sequence[ShardJob], num_processes: int, num_images: int) -> list[ShardResult]:
    num_processes = min(num_processes, len(jobs))
    progress = functools.partial(tqdm, total=num_images, unit="image", file=sys.stderr)
    if num_processes <= 1:
        with progress() as bar:
            return [build_shard(job, bar.update) for job in jobs]
    # A fork shares what is imported already, but not the threads that TensorFlow would need.
    can_fork = sys.platform == "linux" and "tensorflow" not in sys.modules
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    counter = context.Value("q", 0)
    stop = context.RawValue("b", 0)  # without a lock that a killed process could keep
    gc.freeze()  # the collector would touch, and so copy, every page that processes share
    with futures.ProcessPoolExecutor(
        num_processes, context, initializer=_start_worker, initargs=(counter, stop)
    ) as executor:
        try:
            tasks = [executor.submit(_build_shard_in_worker, job) for job in jobs]
            with progress() as bar:
                return _collect(tasks, lambda: bar.update(counter.get_obj().value - bar.n))
        except BrokenProcessPool:
            raise Interrupted(
                "a converter process died, perhaps for want of memory; run the same command "
                "again to go on, with fewer --num_processes."
            ) from None
        finally:
            stop.value = 1
            executor.shutdown(wait=True, cancel_futures=True)
            gc.unfreeze()


def _collect(tasks: Sequence[futures.Future], show_progress: Callable) -> list[ShardResult]:
    pending = set(tasks)
    while pending:
        done, pending = futures.wait(pending, timeout=0.2, return_when=futures.FIRST_EXCEPTION)
        show_progress()
        for task in done:
            task.result()
    return [task.result() for task in tasks]


_WORKER: dict = {}  # what a worker process shares with its parent


def _start_worker(counter, stop) -> None:
    """Prepares a worker process, which leaves the keyboard to its parent and dies with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _WORKER.update(counter=counter, stop=stop)


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _build_shard_in_worker(job: ShardJob) -> ShardResult:
    def advance(num_images=1):
        if _WORKER["stop"].value:
            raise _Stopped
        with _WORKER["counter"].get_lock():
            _WORKER["counter"].value += num_images

    return build_shard(job, advance)


def _summarise(
    settings: Conversion,
    dataset: coco.CocoDataset,
    skipped_items: Sequence[dict],
    results: Sequence[ShardResult],
) -> manifest.Manifest:
    items = [*skipped_items, *(item for result in results for item in result.skipped)]
    num_annotations = sum("annotation_id" in item for item in items)
    num_images = sum(result.shard["num_images"] for result in results)
    if not num_images:
        raise UserError(
            f"no image of {settings.annotations_file} can be used, the first because "
            f"{items[0]['reason']}; check --image_dir."
        )
    return manifest.Manifest(
        num_images=num_images,
        num_instances=sum(result.num_instances for result in results),
        num_crowds=sum(result.num_crowds for result in results),
        max_instances_per_image=max(result.max_instances_per_image for result in results),
        include_masks=settings.include_masks,
        num_without_polygons=sum(result.num_without_polygons for result in results),
        max_polygon_vertices=max(result.max_polygon_vertices for result in results),
        categories=tuple(dataset.categories),
        skipped={
            "images": len(items) - num_annotations,
            "annotations": num_annotations,
            "items": items,
        },
        shards=tuple(result.shard for result in results),
    )


def _publish(settings: Conversion, jobs: Sequence[ShardJob], summary: manifest.Manifest) -> None:
    """Puts the shards in place of what an earlier conversion left, then the manifest."""
    manifest_path = manifest.manifest_name(settings.output_prefix)
    stale = _stale_shards(manifest_path, keep={job.name for job in jobs})
    with contextlib.suppress(FileNotFoundError):
        os.remove(manifest_path)
    for path in stale:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    for job in jobs:
        if os.path.exists(job.path):
            os.replace(job.path, job.final_path)
    manifest.write_manifest(manifest_path, summary)


def _stale_shards(manifest_path: str, keep: set[str]) -> list[str]:
    """Shards of the manifest to be replaced that no shard of the same name replaces.

    Left in place, a pattern such as P-* would read the images of both conversions.
    """
    try:
        names = {shard["name"] for shard in manifest.load_manifest(manifest_path).shards}
    except UserError:
        return []
    folder = os.path.dirname(manifest_path)
    return [os.path.join(folder, os.path.basename(name)) for name in sorted(names - keep)]
