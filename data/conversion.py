"""Converts a COCO file and a folder of images to a set of shards with their manifest.

A work item is a shard: a process reads, checks and writes the images of one shard alone, so memory
does not grow with the dataset, and the bytes do not depend on how many processes there are.
Everything is made in the folder `P.partial` next to the shards, under names that no pattern of
shards matches. If a conversion is interrupted, each finished shard stays there with a note, and a
rerun uses it if its input has not changed. When all are done, a journal lists the files of earlier
conversions to remove; then the manifest is written, and the shards are moved into place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from data import coco, files, manifest
from data.errors import UserError
from data.findings import SkippedItems, Warnings, first_reason, format_warning
from data.processes import run_jobs
from data.settings import require
from data.shards import NOTE_SUFFIX, ShardJob, ShardResult, build_shard


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What to convert, where to, and how."""

    image_dir: str
    annotations_file: str
    output_prefix: str  # P of P-00000-of-0000N.tfrecord
    num_shards: int
    include_masks: bool = True
    skip_invalid: bool = False  # leave out invalid images and annotations instead of stopping
    num_processes: int = 1  # 0 and 1 work in this process

    def __post_init__(self):
        require(self.num_shards >= 1, "num_shards", self.num_shards, "1 or more")
        require(self.num_processes >= 0, "num_processes", self.num_processes, "0 or more")
        require(
            os.path.basename(self.output_prefix) != "",
            "output_file_prefix",
            self.output_prefix,
            "a path ending in the common prefix of the shard names, such as records/train",
        )

    @property
    def output_dir(self) -> str:
        """Folder of the shards and their manifest."""
        return os.path.dirname(self.output_prefix) or "."

    @property
    def partial_dir(self) -> str:
        """Folder that holds the finished shards until all are done."""
        return manifest.partial_name(self.output_prefix)


Build = Callable[[Conversion, Sequence[ShardJob]], list[ShardResult]]


def convert(settings: Conversion, build: Build | None = None) -> manifest.Manifest:
    """Converts a dataset; a rerun makes only the shards that are missing or changed.

    Args:
        settings: what to convert, where to, and how.
        build: calls `data.shards.build_shard` for every job; by default in processes of this
            machine.

    Returns:
        The manifest, which is also written to `P.manifest.json`. Its warnings go to stderr.

    Raises:
        UserError: something in the input cannot be used, or the output cannot be written. The
            output of an earlier conversion is then untouched. Finished shards are kept in
            `P.partial`; if there are none, nothing is left behind.
    """
    with _partial_folder(settings):
        if not files.is_folder(settings.image_dir):
            raise UserError(f"the folder {settings.image_dir} does not exist; check --image_dir.")
        skipped = SkippedItems(tolerate=settings.skip_invalid)
        dataset = coco.load_dataset(settings.annotations_file, skipped)
        jobs = _plan(settings, dataset)
        stale = _stale_shards(settings, jobs)
        results = (build or _build_here)(settings, jobs)
        summary = _summarise(settings, dataset, skipped.items, results)
        _publish(settings, jobs, stale, summary)
    for entry in summary.warnings:
        print(format_warning(entry), file=sys.stderr)
    return summary


@contextlib.contextmanager
def _partial_folder(settings: Conversion) -> Iterator[None]:
    """Makes the folder of unfinished work, which after an error keeps only finished shards."""
    made: list[str] = []
    try:
        made += files.missing_folders(settings.partial_dir)
        files.make_folder(settings.partial_dir)
        files.probe(settings.output_dir)
        yield
        files.remove_folder(settings.partial_dir)
    except BaseException as error:
        waiting = _keep_finished_shards(settings.partial_dir)
        files.remove_empty_folders([settings.partial_dir, *made])
        if isinstance(error, OSError):
            sentence = (
                f"cannot write to {settings.output_dir}: {error.strerror or error}; choose "
                "another --output_file_prefix or free disk space."
            )
        elif isinstance(error, UserError):
            sentence = str(error)
        else:
            raise
        raise UserError(sentence + waiting) from None


def _keep_finished_shards(folder: str) -> str:
    """Leaves only finished shards, their notes and a journal; returns a sentence about them."""
    try:
        names = set(files.list_folder(folder))
        notes = {name for name in names if name.endswith(NOTE_SUFFIX)}
        finished = names & {note.removesuffix(NOTE_SUFFIX) for note in notes}
        # Shards without images take no time, so they are not worth keeping.
        empty = {name for name in finished if not files.size(os.path.join(folder, name))}
        finished -= empty
        notes -= {name + NOTE_SUFFIX for name in empty}
        for name in names - notes - finished - {manifest.JOURNAL}:
            files.remove(os.path.join(folder, name))
    except OSError:
        return ""
    return (
        f" Finished shards ({len(finished)}) are kept in {folder} for a rerun." if finished else ""
    )


def _plan(settings: Conversion, dataset: coco.CocoDataset) -> list[ShardJob]:
    prefix, count = settings.output_prefix, settings.num_shards
    return [
        ShardJob(
            name=os.path.basename(manifest.shard_name(prefix, index, count)),
            path=os.path.join(settings.partial_dir, f"{index:05d}-of-{count:05d}"),
            final_path=manifest.shard_name(prefix, index, count),
            image_dir=settings.image_dir,
            include_masks=settings.include_masks,
            skip_invalid=settings.skip_invalid,
            images=dataset.images[index::count],
            categories={category["id"]: category for category in dataset.categories},
        )
        for index in range(count)
    ]


def _build_here(settings: Conversion, jobs: Sequence[ShardJob]) -> list[ShardResult]:
    """Builds the shards in processes of this machine."""
    num_images = sum(len(job.images) for job in jobs)
    return run_jobs(build_shard, jobs, settings.num_processes, ("Converting", num_images))


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
            f"none of the images of {settings.annotations_file} can be used{first_reason(items)}; "
            "check --image_dir."
        )
    shards = tuple(result.entry for result in results)
    return manifest.Manifest(
        **manifest.totals(shards),
        include_masks=settings.include_masks,
        categories=tuple(dataset.categories),
        skipped={
            "images": len(items) - num_annotations,
            "annotations": num_annotations,
            "items": items,
        },
        warnings=tuple(_warnings(results, num_annotations).entries),
        shards=shards,
    )


def _warnings(results: Sequence[ShardResult], num_left_out: int) -> Warnings:
    warnings = Warnings(*(result.warnings for result in results))
    num_crowds = sum(result.num_crowds for result in results)
    if not any(result.num_instances for result in results) and (num_crowds or num_left_out):
        warnings.add(
            f"there are no objects to learn from: {num_crowds} are crowds (iscrowd 1), "
            f"{num_left_out} were left out"
        )
    return warnings


def _stale_shards(settings: Conversion, jobs: Sequence[ShardJob]) -> list[str]:
    """Lists the shards of earlier conversions that no shard of the same name replaces.

    If they stayed, a pattern such as P-* would read the images of both conversions.

    Raises:
        UserError: there are shards with this prefix that no manifest lists.
    """
    fresh = {job.name for job in jobs}
    stale = _listed_shards(settings.output_prefix) - fresh
    prefix = re.escape(os.path.basename(settings.output_prefix))
    own_name = re.compile(prefix + r"-\d{5,}-of-\d{5,}\.tfrecord")
    present = set(filter(own_name.fullmatch, files.list_folder(settings.output_dir)))
    if foreign := sorted(present - fresh - stale):
        raise UserError(
            f"{settings.output_prefix}-* would also match {foreign[0]}, which no manifest lists; "
            "remove the leftover files of other conversions, or choose another "
            "--output_file_prefix."
        )
    return sorted(stale)


def _listed_shards(prefix: str) -> set[str]:
    """Returns the names listed by the manifest, if readable, and an interrupted run's journal."""
    names: set[str] = set()
    if files.exists(journal := manifest.journal_name(prefix)):
        with files.open_file(journal) as file:
            names |= set(json.load(file))
    if files.exists(path := manifest.manifest_name(prefix)):
        with contextlib.suppress(UserError):
            names |= {shard["name"] for shard in manifest.load_manifest(path).shards}
    return names


def _publish(
    settings: Conversion, jobs: Sequence[ShardJob], stale: Sequence[str], summary: manifest.Manifest
) -> None:
    """Replaces the output of earlier conversions by the finished shards.

    A journal of the files to remove is written first and stays until everything is in place, so
    that a rerun can complete the work and readers refuse a mixture of two conversions.
    """
    journal = manifest.journal_name(settings.output_prefix)
    with files.whole_file(journal) as file:
        json.dump(stale, file)
    manifest.write_manifest(manifest.manifest_name(settings.output_prefix), summary)
    for name in stale:
        with contextlib.suppress(FileNotFoundError):
            files.remove(os.path.join(settings.output_dir, name))
    for job in jobs:
        if files.exists(job.path):
            files.rename(job.path, job.final_path)
    files.remove(journal)
