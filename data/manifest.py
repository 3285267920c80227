"""The manifest beside a set of shards: counts, categories, what was left out, checksums.

`P.manifest.json` belongs to the shards `P-00000-of-0000N.tfrecord`.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
import os
import re
from collections.abc import Sequence

from data.errors import UserError
from data.files import whole_file

SCHEMA_VERSION = 1
_SHARD_NAME = re.compile(r"(?P<prefix>.*)-\d{5,}-of-\d{5,}\.tfrecord")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a conversion wrote."""

    num_images: int
    num_instances: int  # without crowds
    num_crowds: int
    max_instances_per_image: int  # without crowds
    include_masks: bool
    categories: tuple[dict, ...]  # {"label": 1..K, "id", "name"}, in order of label
    skipped: dict  # {"images": n, "annotations": m, "items": [{..., "reason"}]}
    # {"name", "num_images", "bytes", "sha256", "sizes": {"480x640": n}}, sizes as height x width
    shards: tuple[dict, ...]
    # Manifests of records without polygons need not have the next two.
    num_without_polygons: int | None = None  # instances without crowds; None: no record has any
    max_polygon_vertices: int = 0  # of one of them, each polygon's first point counted twice
    schema_version: int = SCHEMA_VERSION

    @property
    def num_classes(self) -> int:
        """Classes with the background."""
        return len(self.categories) + 1

    @property
    def image_sizes(self) -> collections.Counter[tuple[int, int]] | None:
        """Number of images of each (height, width); None where a shard's are not recorded."""
        if not all("sizes" in shard for shard in self.shards):
            return None
        sizes: collections.Counter[tuple[int, int]] = collections.Counter()
        for shard in self.shards:
            for size, count in shard["sizes"].items():
                sizes[tuple(map(int, size.split("x")))] += count
        return sizes

    @property
    def include_polygons(self) -> bool:
        """Whether every instance but crowds has polygons."""
        return self.num_instances == 0 or self.num_without_polygons == 0


def shard_name(prefix: str, index: int, num_shards: int) -> str:
    """Path of a shard."""
    return f"{prefix}-{index:05d}-of-{num_shards:05d}.tfrecord"


def manifest_name(prefix: str) -> str:
    """Path of the manifest of a set of shards."""
    return f"{prefix}.manifest.json"


def write_manifest(path: str, manifest: Manifest) -> None:
    """Writes the manifest so that it appears under its name only when it is complete."""
    fields = dataclasses.asdict(manifest)
    content = {"schema_version": fields.pop("schema_version"), **fields}
    with whole_file(path) as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def load_manifest(path: str) -> Manifest:
    """Reads a manifest.

    Raises:
      UserError: it cannot be read, is no manifest, or is of another schema version.
    """
    try:
        with _open(path) as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the manifest {path} ({error}); convert again.") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version} and this program reads {SCHEMA_VERSION}; "
            "convert again."
        )
    fields = {field.name: field.default for field in dataclasses.fields(Manifest)}
    needed = [name for name, default in fields.items() if default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in content]:
        raise UserError(f"the manifest {path} lacks {missing[0]!r}; convert again.")
    fields = {name: content.get(name, default) for name, default in fields.items()}
    fields |= {name: tuple(fields[name]) for name in ("categories", "shards")}
    return Manifest(**fields)


def find_manifest(file_pattern: str) -> Manifest | None:
    """Finds the manifest that belongs to the shards a pattern matches.

    Args:
      file_pattern: as for `expand_pattern`. Where it matches several sets of shards, their
        manifests are joined: counts added, shards and skipped items one after another.

    Returns:
      None when a matched shard has no manifest, as others' records have none.

    Raises:
      UserError: nothing matches, a manifest cannot be read, or the sets' categories differ.
    """
    matches = [_SHARD_NAME.fullmatch(path) for path in expand_pattern(file_pattern)]
    if not all(matches):
        return None
    paths = sorted({manifest_name(match["prefix"]) for match in matches})
    if not all(_exists(path) for path in paths):
        return None
    manifests = [load_manifest(path) for path in paths]
    for path, manifest in zip(paths, manifests, strict=True):
        if manifest.categories != manifests[0].categories:
            raise UserError(
                f"the categories in {path} and {paths[0]} differ; convert both from JSON files "
                "with one category list, or name the shards of one set only."
            )
    return manifests[0] if len(manifests) == 1 else _join(manifests)


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
        max_polygon_vertices=max(entry.max_polygon_vertices for entry in manifests),
    )


def expand_pattern(file_pattern: str) -> list[str]:
    """Lists the files a pattern matches, in order of name.

    Args:
      file_pattern: a glob, or several with commas between. What has a scheme, such as gs://, is
        looked up through TensorFlow's file systems.

    Raises:
      UserError: one of the globs matches nothing.
    """
    paths = set()
    for pattern in file_pattern.split(","):
        matched = _glob(pattern.strip()) if pattern.strip() else []
        if not matched:
            raise UserError(
                f"no file matches {pattern.strip()!r}; check the path, and quote the pattern so "
                "that the shell leaves it alone."
            )
        paths.update(matched)
    return sorted(paths)


def _glob(pattern: str) -> list[str]:
    if "://" in pattern:
        return _gfile().glob(pattern)
    return [path for path in glob.glob(pattern) if os.path.isfile(path)]


def _exists(path: str) -> bool:
    return _gfile().exists(path) if "://" in path else os.path.isfile(path)


def _open(path: str):
    return _gfile().GFile(path) if "://" in path else open(path, encoding="utf-8")


def _gfile():
    """TensorFlow's file access, imported only for paths that Python cannot open."""
    from tensorflow.io import gfile

    return gfile
