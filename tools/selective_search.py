"""Writes object proposals by selective search, for R-CNN and Fast R-CNN.

    python tools/selective_search.py --image_dir=photos/train \\
        --object_annotations_file=photos/train.json --output_file=photos/train_proposals.json.gz

Selective search (Uijlings et al., "Selective Search for Object Recognition", IJCV 2013) segments an
image in several colour spaces, joins similar neighbours step by step, and proposes the box of every
region that occurs. This is OpenCV's implementation; it needs the extra `proposals`.

The images are those of a COCO file, read and rotated as in training. As in R-CNN and Fast R-CNN,
each is first resized to a width of 500 pixels; the boxes are in whole pixels of the original image.

The output is in COCO results format: `image_id`, `bbox` and `score`; `category_id` is always 1.
Selective search has no scores, only an order: largest regions first, mixed at random. The score is
1 / rank, so the N highest scores of an image are its first N proposals.

Images are processed in groups of 16. Finished groups stay in the folder `P.json.partial` until all
are done, and a rerun uses those whose images and settings have not changed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gzip
import hashlib
import importlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

from data import files
from data.coco import CocoImage, load_dataset
from data.config import DataConfig
from data.errors import UserError
from data.findings import SkippedItems, first_reason
from data.image_files import image_state, read_image
from data.images import InvalidImage
from data.processes import run_jobs
from data.tensorflow_log import quieten_tensorflow

_METHODS = ("fast", "quality")
_IMAGES_PER_GROUP = 16
# Tall images are resized to less than --width, so that none becomes larger than this.
_MAX_ASPECT = 4
_BLOCK_BYTES = 1 << 20

# Part of the names of finished groups; increase it whenever the proposals change.
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        method: "fast" (2 colour spaces, 2 similarities) or "quality" (5 and 4).
        max_proposals: number of proposals to keep for an image.
        width: pixels to which images are resized first; 0 keeps their size.
        seed: of the order of the proposals.
        exif: "apply" or "ignore", as in `data.decoding.decode_image`.
    """

    method: str = "fast"
    max_proposals: int = 2000
    width: int = 500
    seed: int = 0
    exif: str = "apply"


class Summary(NamedTuple):
    """What was written.

    Attributes:
        num_images: number of images with proposals.
        num_proposals: number of proposals of all images.
        left_out: the images that cannot be used, as in `data.findings.SkippedItems`.
    """

    num_images: int
    num_proposals: int
    left_out: list[dict]


@dataclasses.dataclass(frozen=True)
class _Group:
    """Images whose proposals are written to one file."""

    folder: str  # of that file
    is_compressed: bool
    image_dir: str
    images: Sequence[CocoImage]
    search: Search
    skip_invalid: bool


class _Part(NamedTuple):
    """The file of a finished group: a line of JSON with the counts, then a part of the output."""

    path: str
    num_proposals: int
    left_out: list[dict]


def propose(image: np.ndarray, search: Search, seed: int) -> np.ndarray:
    """Proposes boxes of objects.

    Args:
        image: uint8 [h, w, 3], RGB.
        search: how.
        seed: of the order, 32 bits.

    Returns:
        Distinct boxes as in COCO files, int64 [P, 4] as x, y, w, h in pixels of `image`; the first
        are the most likely ones.
    """
    import cv2

    cv2.setNumThreads(1)
    resized = _resize(image, search.width)
    searcher = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    searcher.setBaseImage(np.ascontiguousarray(resized[:, :, ::-1]))
    if search.method == "fast":
        searcher.switchToSelectiveSearchFast()
    else:
        searcher.switchToSelectiveSearchQuality()
    # OpenCV takes the random numbers of its order from C's rand, not from its own generator.
    ctypes.CDLL(None).srand(ctypes.c_uint(seed))
    boxes = _rescale(np.asarray(searcher.process()), resized.shape, image.shape)
    _, positions = np.unique(boxes, axis=0, return_index=True)
    return boxes[np.sort(positions)][: search.max_proposals]


def _resize(image: np.ndarray, target_width: int) -> np.ndarray:
    import cv2

    height, width = image.shape[:2]
    if not target_width:
        return image
    scale = min(target_width / width, _MAX_ASPECT * target_width / height)
    size = max(round(scale * width), 1), max(round(scale * height), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _rescale(boxes: np.ndarray, resized: Sequence[int], original: Sequence[int]) -> np.ndarray:
    """Maps boxes x, y, w, h to whole pixels of the original image; some may become empty."""
    scale = np.array([original[1] / resized[1], original[0] / resized[0]])
    starts = np.round(boxes[:, :2] * scale)
    ends = np.round((boxes[:, :2] + boxes[:, 2:]) * scale)
    boxes = np.concatenate([starts, ends - starts], axis=1).astype(np.int64)
    return boxes[(boxes[:, 2:] > 0).all(axis=1)]


def write_proposals(
    image_dir: str,
    annotations_file: str,
    output_file: str,
    search: Search,
    num_processes: int = 1,
    skip_invalid: bool = False,
) -> Summary:
    """Writes the proposals of all images of a COCO file.

    Args:
        image_dir: folder of the images.
        annotations_file: COCO JSON; it may have no annotations.
        output_file: JSON to write, compressed if its name ends in .gz. Its content does not depend
            on `num_processes`.
        search: how to search.
        num_processes: number of worker processes; 0 and 1 work in this one.
        skip_invalid: leave out images that cannot be used instead of stopping.

    Raises:
        UserError: an image or the JSON cannot be used, OpenCV is missing, or the output cannot be
            written.
    """
    _require_opencv()
    if not files.is_folder(image_dir):
        raise UserError(f"the folder {image_dir} does not exist; check --image_dir.")
    images, unusable = _load_images(annotations_file, skip_invalid)
    with _partial_folder(output_file) as folder:
        is_compressed = output_file.endswith(".gz")
        work = _Group(folder, is_compressed, image_dir, images, search, skip_invalid)
        groups = [
            dataclasses.replace(work, images=images[start : start + _IMAGES_PER_GROUP])
            for start in range(0, len(images), _IMAGES_PER_GROUP)
        ]
        progress = ("Selective search", len(images))
        parts = run_jobs(_process_group, groups, num_processes, progress)
        left_out = [item for part in parts for item in part.left_out]
        if len(left_out) == len(images):
            raise UserError(
                f"none of the images of {annotations_file} can be used{first_reason(left_out)}; "
                "check --image_dir."
            )
        _join([part.path for part in parts if part.num_proposals], output_file)
    num_proposals = sum(part.num_proposals for part in parts)
    return Summary(len(images) - len(left_out), num_proposals, unusable + left_out)


def _require_opencv() -> None:
    try:
        importlib.import_module("cv2.ximgproc")
    except ImportError:
        raise UserError(
            "selective search needs OpenCV with its contributed modules; remove any other package "
            "of OpenCV and pip install 'mask-scoring-rcnn[proposals]'."
        ) from None


def _load_images(annotations_file: str, skip_invalid: bool) -> tuple[list[CocoImage], list[dict]]:
    """Returns the images of a COCO file without annotations, and those that cannot be used."""
    found = SkippedItems(tolerate=True)
    images = load_dataset(annotations_file, found).images
    skipped = SkippedItems(tolerate=skip_invalid)
    for item in found.items:
        if "annotation_id" not in item:
            skipped.add_image(item["reason"], item["image_id"], item["file_name"])
    return [image._replace(annotations=[]) for image in images], skipped.items


@contextlib.contextmanager
def _partial_folder(output_file: str) -> Iterator[str]:
    """Makes the folder of finished groups and removes it at the end, after an error if empty."""
    folder = f"{files.expand(output_file)}.partial"
    made: list[str] = []
    try:
        if files.is_folder(output_file):
            raise UserError(f"--output_file={output_file} is a folder; add the name of a file.")
        made += files.missing_folders(folder)
        files.make_folder(folder)
        yield folder
        files.remove_folder(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {output_file}: {error.strerror or error}; choose another --output_file "
            "or free disk space, and run the same command again to continue."
        ) from None
    finally:
        files.remove_empty_folders([folder, *made])


def _process_group(group: _Group, advance: Callable[[int], None]) -> _Part:
    """Writes the proposals of a group, unless an earlier run did."""
    path = os.path.join(group.folder, _digest(group))
    finished = _read_part(path)
    if finished and (group.skip_invalid or not finished.left_out):
        advance(len(group.images))
        return finished
    skipped = SkippedItems(tolerate=group.skip_invalid)
    entries: list[str] = []
    for image in group.images:
        try:
            entries += _entries_of(image, group)
        except InvalidImage as error:
            skipped.add_image(str(error), image.id, image.file_name)
        advance(1)
    counts = {"num_proposals": len(entries), "left_out": skipped.items}
    with files.whole_file(path, "wb") as file:
        file.write(json.dumps(counts).encode() + b"\n")
        file.write(_encode(",\n".join(entries), group.is_compressed))
    return _Part(path, **counts)


def _read_part(path: str) -> _Part | None:
    if not files.exists(path):
        return None
    with files.open_file(path, "rb") as file:
        return _Part(path, **json.loads(file.readline()))


def _digest(group: _Group) -> str:
    """Digests what determines the proposals of a group."""
    import cv2

    parts = [
        _VERSION,
        cv2.__version__,
        dataclasses.asdict(group.search),
        files.expand(group.image_dir),
        [(image, image_state(group.image_dir, image)) for image in group.images],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _entries_of(image: CocoImage, group: _Group) -> list[str]:
    """Returns the proposals of an image as JSON."""
    # Imported here, because processes cannot be forked once TensorFlow is imported.
    quieten_tensorflow()
    from data.photographs import decode_photograph

    encoded, _, _ = read_image(group.image_dir, image)
    pixels = decode_photograph(encoded, group.search.exif, (image.height, image.width))
    seed = zlib.crc32(f"{group.search.seed} {image.id}".encode())
    boxes = propose(pixels, group.search, seed)
    return [
        f'{{"image_id":{image.id},"category_id":1,"bbox":{box},"score":{1 / rank:.6g}}}'
        for rank, box in enumerate(boxes.tolist(), start=1)
    ]


def _encode(text: str, is_compressed: bool) -> bytes:
    """Encodes a part of the output; joined parts of gzip are gzip, too."""
    return gzip.compress(text.encode(), mtime=0) if is_compressed else text.encode()


def _join(paths: Iterable[str], output_file: str) -> None:
    """Writes the output from its parts without decoding them."""
    with files.whole_file(output_file, "wb") as output:
        separator = "[\n"
        for path in paths:
            output.write(_encode(separator, output_file.endswith(".gz")))
            _copy_part(path, output)
            separator = ",\n"
        output.write(_encode("\n]\n", output_file.endswith(".gz")))


def _copy_part(path: str, output: IO[bytes]) -> None:
    with files.open_file(path, "rb") as part:
        part.readline()
        while block := part.read(_BLOCK_BYTES):
            output.write(block)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--image_dir", required=True, help="Folder with the images.")
    add("--object_annotations_file", required=True, help="COCO JSON of the images.")
    add("--output_file", required=True, help="JSON to write; .json.gz compresses it.")
    add("--method", choices=_METHODS, default="fast", help="Speed or number of proposals.")
    add("--max_proposals", type=int, default=2000, help="Proposals to keep for an image.")
    add("--width", type=int, default=500, help="Width that images are resized to first; 0: none.")
    add("--seed", type=int, default=0, help="Seed of the order of the proposals.")
    add("--num_processes", type=int, default=os.cpu_count(), help="Number of worker processes.")
    unusable = "Stop at an image that cannot be used (error), or leave it out (skip)."
    add("--on_invalid", choices=("error", "skip"), default="error", help=unusable)
    exif = DataConfig.__dataclass_fields__["exif"]
    add("--exif", choices=("apply", "ignore"), default=exif.default, help=exif.metadata["help"])
    flags = parser.parse_args(argv)
    if flags.max_proposals < 1 or min(flags.width, flags.seed, flags.num_processes) < 0:
        parser.error(
            "--max_proposals must be at least 1; --width, --seed and --num_processes at least 0"
        )
    return _run(flags)


def _run(flags: argparse.Namespace) -> int:
    names = [field.name for field in dataclasses.fields(Search)]
    search = Search(**{name: getattr(flags, name) for name in names})
    try:
        written = write_proposals(
            flags.image_dir,
            flags.object_annotations_file,
            flags.output_file,
            search,
            num_processes=flags.num_processes,
            skip_invalid=flags.on_invalid == "skip",
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to continue.", file=sys.stderr)
        return 1
    if written.left_out:
        reason = first_reason(written.left_out)
        print(f"Warning: left out {len(written.left_out)} images{reason}.", file=sys.stderr)
    print(
        f"wrote {written.num_proposals} proposals of {written.num_images} images to "
        f"{flags.output_file}"
    )
    return 0


def run() -> None:
    """Runs the command line; entry point of msrcnn-selective-search."""
    sys.exit(main())


if __name__ == "__main__":
    run()
