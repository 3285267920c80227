"""Builds one shard of a conversion: reads, checks and encodes its images.

A note next to a finished shard holds its checksum and a digest of everything that determines its
bytes, by which a later run recognises it. It does not depend on other shards.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from data import coco, files, images, records
from data.annotations import find_doubts, read_outline
from data.findings import InvalidAnnotation, SkippedItems, Warnings
from data.image_files import image_state, read_image
from data.tfrecords import write_shard

NOTE_SUFFIX = ".json"  # of the note next to a finished shard

# Part of the digest in a finished shard's note; increase it whenever a record's bytes change.
_RECORD_VERSION = 4

# Kinds of data.findings.Warnings.
_KEPT_AS_STORED = (
    "images have an EXIF orientation, but their sizes in the JSON show that their annotations "
    "refer to the stored pixels, so they are not rotated"
)
_UNUSED_BITS = (
    "16-bit PNGs do not use their highest bits and are brightened, each by its own power of two; "
    "if brightness has to be comparable between images, convert them to 8 bits"
)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """Everything that a process needs to build one shard."""

    name: str
    path: str  # where it is written
    final_path: str  # its final folder, to which an earlier run may have moved it
    image_dir: str
    include_masks: bool
    skip_invalid: bool
    images: Sequence[coco.CocoImage]
    categories: Mapping[int, dict]  # by COCO id

    @property
    def note_path(self) -> str:
        """Returns the path of the note about a finished shard."""
        return self.path + NOTE_SUFFIX


@dataclasses.dataclass
class ShardResult:
    """The manifest's facts about a shard, and its left-out items and warnings."""

    shard: dict = dataclasses.field(default_factory=dict)  # name, num_images, bytes, sha256
    num_instances: int = 0  # without crowds
    num_crowds: int = 0
    max_instances_per_image: int = 0  # without crowds
    num_without_polygons: int = 0  # without crowds
    max_polygon_vertices: int = 0  # of one of them
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)  # images by "480x640"
    num_turned: int = 0
    num_kept_as_stored: int = 0
    skipped: list[dict] = dataclasses.field(default_factory=list)
    warnings: list[dict] = dataclasses.field(default_factory=list)

    @property
    def entry(self) -> dict:
        """The manifest's entry for the shard: its file and its counts."""
        fields = dataclasses.asdict(self)
        del fields["skipped"], fields["warnings"]
        return {**fields.pop("shard"), **fields}


def build_shard(job: ShardJob, advance: Callable[[int], None], writer: str = "") -> ShardResult:
    """Builds one shard, or finds it finished by an earlier run.

    Args:
        job: what to build.
        advance: called with the number of images done since its last call.
        writer: as for `data.files.whole_file`.

    Raises:
        UserError: an image or annotation is invalid and `job.skip_invalid` is off.
        OSError: the shard cannot be written.
    """
    fingerprint = _fingerprint(job)
    finished = _finished_result(job, fingerprint)
    if finished is not None:
        advance(len(job.images))
        return finished
    result = ShardResult()
    written = write_shard(job.path, _encode_images(job, result, advance), writer)
    result.shard = {
        "name": job.name,
        "num_images": written.num_records,
        "bytes": written.num_bytes,
        "sha256": written.sha256,
    }
    note = {"fingerprint": fingerprint, "result": dataclasses.asdict(result)}
    with files.whole_file(job.note_path, writer=writer) as file:
        json.dump(note, file)
    return result


def _fingerprint(job: ShardJob) -> str:
    """Digests what determines a shard's bytes: settings, annotations, state of the images."""
    parts = [
        _RECORD_VERSION,
        files.expand(job.image_dir),
        job.include_masks,
        job.skip_invalid,
        list(job.categories.values()),
        [(image, image_state(job.image_dir, image)) for image in job.images],
    ]
    return hashlib.sha256(json.dumps(parts, default=_packed_digits).encode()).hexdigest()


def _packed_digits(numbers: array.array) -> str:
    """Serialises packed numbers of polygons and runs for a digest."""
    return numbers.typecode + numbers.tobytes().hex()


def _finished_result(job: ShardJob, fingerprint: str) -> ShardResult | None:
    """Returns the result of an earlier run if its shard is complete and up to date."""
    try:
        with files.open_file(job.note_path) as file:
            note = json.load(file)
        if note["fingerprint"] != fingerprint:
            return None
        path = job.path if files.exists(job.path) else job.final_path
        with files.open_file(path, "rb") as file:
            digest = _file_sha256(file)
        result = ShardResult(**note["result"])
    except (OSError, ValueError, KeyError, TypeError):  # the last two: a note of another version
        return None
    return result if digest == result.shard["sha256"] else None


def _file_sha256(file) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _encode_images(
    job: ShardJob, result: ShardResult, advance: Callable[[int], None]
) -> Iterator[bytes]:
    """Yields the records of a shard and counts what is in them."""
    skipped = SkippedItems(tolerate=job.skip_invalid)
    warnings = Warnings()
    result.skipped, result.warnings = skipped.items, warnings.entries
    for image in job.images:
        try:
            encoded, facts, orientation = read_image(job.image_dir, image)
        except images.InvalidImage as error:
            skipped.add_image(str(error), image.id, image.file_name)
            advance(1)
            continue
        instances = _make_instances(job, image, skipped, warnings)
        _count(instances, result)
        _count_image(image, facts, orientation, result, warnings)
        yield records.encode_example(
            encoded=encoded,
            image_format=facts.format,
            height=image.height,
            width=image.width,
            file_name=image.file_name,
            image_id=image.id,
            instances=instances,
            include_masks=job.include_masks,
            orientation=orientation,
        )
        advance(1)


def _count_image(
    image: coco.CocoImage,
    facts: images.ImageFacts,
    orientation: int,
    result: ShardResult,
    warnings: Warnings,
) -> None:
    """Adds an image to the shard's counts."""
    size = f"{image.height}x{image.width}"
    result.sizes[size] = result.sizes.get(size, 0) + 1
    result.num_turned += orientation != 1
    if orientation != facts.orientation:
        result.num_kept_as_stored += 1
        warnings.add(_KEPT_AS_STORED, f"image {image.id}")
    if facts.unused_bits:
        warnings.add(_UNUSED_BITS, f"image {image.id}")


def _count(instances: Sequence[records.Instance], result: ShardResult) -> None:
    """Adds the instances of one image to the shard's counts."""
    vertices = [instance.num_vertices for instance in instances if not instance.is_crowd]
    result.num_crowds += len(instances) - len(vertices)
    result.num_instances += len(vertices)
    result.max_instances_per_image = max(result.max_instances_per_image, len(vertices))
    result.num_without_polygons += vertices.count(0)
    result.max_polygon_vertices = max([result.max_polygon_vertices, *vertices])


def _make_instances(
    job: ShardJob, image: coco.CocoImage, skipped: SkippedItems, warnings: Warnings
) -> list[records.Instance]:
    instances = []
    for annotation in image.annotations:
        try:
            instances.append(_make_instance(job, image, annotation, warnings))
        except InvalidAnnotation as error:
            skipped.add_annotation(str(error), annotation["id"], image.id)
    return instances


def _make_instance(
    job: ShardJob, image: coco.CocoImage, annotation: Mapping, warnings: Warnings
) -> records.Instance:
    category = job.categories[annotation["category_id"]]
    outline = read_outline(annotation, image.height, image.width, job.include_masks)
    for doubt in find_doubts(annotation, outline, image.height, image.width):
        warnings.add(doubt, f"annotation {annotation['id']}")
    return records.Instance(
        label=category["label"],
        name=category["name"],
        category_id=category["id"],
        annotation_id=annotation["id"],
        **outline._asdict(),
    )
