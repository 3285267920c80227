"""The manifest of a set of shards: counts, categories, items left out, checksums.

`P.manifest.json` belongs to the shards `P-00000-of-0000N.tfrecord`. The files that a pattern
matches are compared with their manifests, so that missing, extra or changed shards are noticed.
"""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from data import files
from data.errors import UserError
from data.findings import Warnings

SCHEMA_VERSION = 1
JOURNAL = "publishing"  # in P.partial while shards are moved into place
_MANIFEST_SUFFIX = ".manifest.json"
_SHARD_NAME = re.compile(r"(?P<prefix>.*)-\d{5,}-of-\d{5,}\.tfrecord", re.DOTALL)
# Files that count as records in a folder, those of other converters included.
_RECORD_NAME = re.compile(r".*(\.(tf)?records?|-\d{5,}-of-\d{5,})(\.gz)?", re.DOTALL)
# Counts that shards and whole conversions have.
_COUNTS = (
    "num_images",
    "num_instances",
    "num_crowds",
    "max_instances_per_image",
    "num_without_polygons",
    "max_polygon_vertices",
    "num_turned",
    "num_kept_as_stored",
)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Describes what a conversion wrote."""

    num_images: int
    num_instances: int  # without crowds
    num_crowds: int
    max_instances_per_image: int  # without crowds
    include_masks: bool
    categories: tuple[dict, ...]  # {"label": 1..K, "id", "name"}, in order of label
    skipped: dict  # {"images": n, "annotations": m, "items": [{..., "reason"}]}
    # {"name", "bytes", "sha256", "num_images" and its other counts, "sizes": {"480x640": n}}, the
    # sizes as height x width
    shards: tuple[dict, ...]
    # Manifests of records without polygons may lack the next two.
    num_without_polygons: int | None = (
        None  # instances except crowds; None if no record has polygons
    )
    max_polygon_vertices: int = 0  # of one of them, each polygon's first point counted twice
    num_turned: int = 0  # images that are rotated by their EXIF orientation
    num_kept_as_stored: int = (
        0  # images that are not, because their annotations refer to the stored pixels
    )
    warnings: tuple[dict, ...] = ()  # entries of data.findings.Warnings
    schema_version: int = SCHEMA_VERSION

    @property
    def num_classes(self) -> int:
        """Number of classes, including the background."""
        return len(self.categories) + 1

    @property
    def image_sizes(self) -> collections.Counter[tuple[int, int]] | None:
        """Number of images of each (height, width); None if a shard does not state it."""
        if not all("sizes" in shard for shard in self.shards):
            return None
        sizes: collections.Counter[tuple[int, int]] = collections.Counter()
        for shard in self.shards:
            for size, count in shard["sizes"].items():
                sizes[tuple(map(int, size.split("x")))] += count
        return sizes

    @property
    def include_polygons(self) -> bool:
        """Whether every instance, except crowds, has polygons."""
        return self.num_instances == 0 or self.num_without_polygons == 0


def shard_name(prefix: str, index: int, num_shards: int) -> str:
    """Returns the path of a shard."""
    return f"{prefix}-{index:05d}-of-{num_shards:05d}.tfrecord"


def manifest_name(prefix: str) -> str:
    """Returns the path of the manifest of a set of shards."""
    return prefix + _MANIFEST_SUFFIX


def partial_name(prefix: str) -> str:
    """Returns the path of the folder in which shards are made."""
    return f"{prefix}.partial"


def journal_name(prefix: str) -> str:
    """Returns the path of the list of shards to remove, which exists while shards are moved."""
    return os.path.join(partial_name(prefix), JOURNAL)


def write_manifest(path: str, manifest: Manifest) -> None:
    """Writes the manifest, which appears under its name only once it is complete."""
    fields = dataclasses.asdict(manifest)
    content = {"schema_version": fields.pop("schema_version"), **fields}
    with files.whole_file(path) as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def load_manifest(path: str) -> Manifest:
    """Reads a manifest.

    Raises:
        UserError: it cannot be read, is not a manifest, or has another schema version.
    """
    try:
        with files.open_file(path) as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the manifest {path} ({error}); convert the dataset again."
        ) from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}, but this program reads version "
            f"{SCHEMA_VERSION}; convert the dataset again."
        )
    fields = {field.name: field.default for field in dataclasses.fields(Manifest)}
    needed = [name for name, default in fields.items() if default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in content]:
        raise UserError(f"the manifest {path} lacks {missing[0]!r}; convert the dataset again.")
    fields = {name: content.get(name, default) for name, default in fields.items()}
    fields |= {name: tuple(fields[name]) for name in ("categories", "shards", "warnings")}
    return Manifest(**fields)


def totals(shards: Sequence[Mapping]) -> dict[str, int]:
    """Sums the counts of several shards that all of them state."""
    return {
        name: (max if name.startswith("max_") else sum)(shard[name] for shard in shards)
        for name in _COUNTS
        if all(name in shard for shard in shards)
    }


class _ShardSet(NamedTuple):
    """The shards of one conversion that a pattern matches."""

    path: str  # of the manifest
    manifest: Manifest  # of all shards
    matched: dict[str, str]  # path by name

    def select(self) -> Manifest:
        """Returns a manifest of the matched shards only."""
        shards = tuple(shard for shard in self.manifest.shards if shard["name"] in self.matched)
        if len(shards) == len(self.manifest.shards):
            return self.manifest
        return dataclasses.replace(self.manifest, shards=shards, **totals(shards))


def find_manifest(file_pattern: str) -> Manifest | None:
    """Finds the manifest that belongs to the shards a pattern matches.

    Args:
        file_pattern: as for `expand_pattern`. If it matches only some shards of a conversion, the
            manifest describes only these. If it matches several sets of shards, their manifests are
            joined: counts are added, shards and skipped items concatenated.

    Returns:
        None if a matched file has no manifest, as records of other converters.

    Raises:
        UserError: nothing matches, a manifest cannot be read, a matched shard is not listed, a
            listed shard is missing, a conversion is unfinished, or the sets' categories differ.
    """
    sets, foreign = _find_sets(_split(file_pattern))
    for found in sets:
        if found.manifest.categories != sets[0].manifest.categories:
            raise UserError(
                f"the categories in {found.path} and {sets[0].path} differ; convert both from "
                "JSON files with the same categories, or give the shards of one set only."
            )
    if foreign:
        return None
    manifests = [found.select() for found in sets]
    return manifests[0] if len(manifests) == 1 else _join(manifests)


def check_shards(file_pattern: str, sizes: bool = True) -> None:
    """Compares the shards' sizes with their manifests, and warns of images that are not matched.

    Args:
        file_pattern: as for `expand_pattern`.
        sizes: whether shards must have the size that the manifest states.

    Raises:
        UserError: a shard was changed, or as for `find_manifest`.
    """
    patterns = _split(file_pattern)
    sets, foreign = _find_sets(patterns)
    for found in sets:
        if sizes:
            _check_sizes(found)
        selected, count = found.select().num_images, found.manifest.num_images
        if selected < count:
            _warn(
                f"{file_pattern} does not match {count - selected} of the {count} images in "
                f"{found.path}"
            )
    if sets and foreign:
        _warn(
            f"{foreign[0]} is not in any manifest, so the manifests of {file_pattern} are ignored"
        )
    for pattern, paths in patterns.items():
        prefixes = sorted({match["prefix"] for match in map(_SHARD_NAME.fullmatch, paths) if match})
        if len(prefixes) > 1:
            _warn(f"{pattern} matches several sets of shards: {', '.join(prefixes)}; all are read")


def _check_sizes(found: _ShardSet) -> None:
    for shard in found.manifest.shards:
        path = found.matched.get(shard["name"])
        if path and (size := files.size(path)) != shard["bytes"]:
            raise UserError(
                f"{path} has {size} bytes, but {found.path} says {shard['bytes']}: it was changed "
                "or truncated; copy it again, or convert the dataset again."
            )


def _find_sets(patterns: Mapping[str, Sequence[str]]) -> tuple[list[_ShardSet], list[str]]:
    """Finds the sets of shards that have a manifest, and the files that belong to none."""
    by_prefix: dict[str, dict[str, str]] = {}
    foreign = []
    for path in sorted({path for paths in patterns.values() for path in paths}):
        match = _SHARD_NAME.fullmatch(path)
        if match:
            by_prefix.setdefault(match["prefix"], {})[os.path.basename(path)] = path
        else:
            foreign.append(path)
    sets = []
    for prefix, matched in by_prefix.items():
        path = manifest_name(prefix)
        if not files.exists(path):
            foreign += matched.values()
            continue
        sets.append(_ShardSet(path, load_manifest(path), matched))
        _check_names(sets[-1], prefix, patterns)
    return sets, foreign


def _check_names(found: _ShardSet, prefix: str, patterns: Iterable[str]) -> None:
    """Refuses shards that the manifest does not list, and checks that those it lists exist."""
    if files.exists(journal_name(prefix)):
        raise UserError(
            f"a conversion to {prefix} was interrupted while its shards were moved into place; "
            "run it again."
        )
    listed = {shard["name"] for shard in found.manifest.shards}
    if unlisted := sorted(found.matched.keys() - listed):
        raise UserError(
            f"{found.matched[unlisted[0]]} is not listed in {found.path}, so it belongs to "
            "another conversion; remove it, or give the shards of one conversion only."
        )
    for name in sorted(listed - found.matched.keys()):
        path = os.path.join(os.path.dirname(prefix), name)
        if any(_covers(pattern, path) for pattern in patterns):
            raise UserError(
                f"{path} is listed in {found.path} but missing; copy it there, or convert the "
                "dataset again."
            )


def _covers(pattern: str, path: str) -> bool:
    """Whether a pattern would match a path if the file existed."""
    if files.is_folder(pattern):
        pattern = os.path.join(pattern, "*")
    names, wanted = (
        [name for name in text.split("/") if name not in ("", ".")]
        for text in (path, files.expand(pattern))
    )
    return len(names) == len(wanted) and all(
        name == want or fnmatch.fnmatchcase(name, want)
        for name, want in zip(names, wanted, strict=True)
    )


def _warn(sentence: str) -> None:
    print(f"Warning: {sentence}.", file=sys.stderr, flush=True)


def _join(manifests: Sequence[Manifest]) -> Manifest:
    def total(name):
        return sum(getattr(manifest, name) for manifest in manifests)

    without_polygons = [
        manifest.num_instances
        if manifest.num_without_polygons is None
        else manifest.num_without_polygons
        for manifest in manifests
    ]

    return Manifest(
        num_images=total("num_images"),
        num_instances=total("num_instances"),
        num_crowds=total("num_crowds"),
        max_instances_per_image=max(entry.max_instances_per_image for entry in manifests),
        include_masks=all(entry.include_masks for entry in manifests),
        categories=manifests[0].categories,
        skipped={
            "images": sum(entry.skipped["images"] for entry in manifests),
            "annotations": sum(entry.skipped["annotations"] for entry in manifests),
            "items": [item for entry in manifests for item in entry.skipped["items"]],
        },
        shards=tuple(shard for entry in manifests for shard in entry.shards),
        num_without_polygons=sum(without_polygons),
        warnings=tuple(Warnings(*(entry.warnings for entry in manifests)).entries),
        max_polygon_vertices=max(entry.max_polygon_vertices for entry in manifests),
        num_turned=total("num_turned"),
        num_kept_as_stored=total("num_kept_as_stored"),
    )


def expand_pattern(file_pattern: str) -> list[str]:
    """Lists the files that a pattern matches, in order of name.

    Args:
        file_pattern: a path, a folder of records, a glob as for `data.files.glob`, or several of
            these separated by commas. A comma is part of a name if a file with that name exists.
            Manifests are left out.

    Raises:
        UserError: one of the globs matches nothing.
    """
    return sorted({path for paths in _split(file_pattern).values() for path in paths})


def _split(file_pattern: str) -> dict[str, list[str]]:
    """Splits at commas into patterns, each with the records that it matches."""
    parts, patterns = file_pattern.split(","), {}
    while parts:
        for count in range(len(parts), 0, -1):
            pattern = ",".join(parts[:count]).strip()
            if matched := _match(pattern):
                break
        else:
            raise UserError(
                f"no file matches {pattern!r}; check the path, and quote the pattern so that the "
                "shell does not expand it."
            )
        patterns[pattern] = matched
        parts = parts[count:]
    return patterns


def _match(pattern: str) -> list[str]:
    try:
        if files.is_folder(pattern):
            names = filter(_RECORD_NAME.fullmatch, files.list_folder(pattern))
            paths = [os.path.join(files.expand(pattern), name) for name in names]
        else:
            paths = files.glob(pattern)
        return [path for path in paths if not path.endswith(_MANIFEST_SUFFIX) and _is_file(path)]
    except OSError as error:
        raise UserError(
            f"cannot search for {pattern!r}: {error.strerror or error}; check the path."
        ) from None


def _is_file(path: str) -> bool:
    # Querying a bucket for each of a thousand shards would take minutes.
    known = files.has_scheme(path) and _RECORD_NAME.fullmatch(path)
    return bool(known) or not files.is_folder(path)
