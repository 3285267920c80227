"""Draws results in COCO format next to the ground truth, for some of the images.

    python tools/write_samples.py --results_dir=M/eval --image_dir=D \\
        --object_annotations_file=F --output_dir=O

reads M/eval/bbox.json and, if it exists, M/eval/segm.json, as written by an evaluation.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from data import files
from data.config import DataConfig
from data.errors import UserError
from trainer.coco_ground_truth import load_ground_truth
from trainer.overlays import annotation_instances, draw_comparison


def read_results(folder: str, min_score: float) -> dict[int, list[dict]]:
    """Reads results by image id, best box_score first, joining box and mask of each detection.

    Args:
        folder: contains bbox.json and optionally segm.json, with entries in the same order.
        min_score: results with a lower box_score are left out.

    Raises:
        UserError: bbox.json is missing or not JSON, or the two files do not belong together.
    """
    results = _read_json(os.path.join(folder, "bbox.json"))
    if files.exists(path := os.path.join(folder, "segm.json")):
        masks = _read_json(path)
        if len(masks) != len(results):
            raise UserError(
                f"{folder}: bbox.json has {len(results)} entries, but segm.json has {len(masks)}; "
                "evaluate again to write both."
            )
        results = [{**box, **mask} for box, mask in zip(results, masks, strict=True)]
    by_image = collections.defaultdict(list)
    for result in sorted(results, key=lambda result: -result["box_score"]):
        if result["box_score"] >= min_score:
            by_image[result["image_id"]].append(result)
    return by_image


def _read_json(path: str) -> list[dict]:
    try:
        with files.open_file(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); evaluate first.") from error


def draw_sample(
    path: str,
    image: Mapping,
    annotations: Sequence[Mapping],
    results: Sequence[Mapping],
    names: Mapping[int, str],
    exif: str,
) -> np.ndarray:
    """Reads an image as training does and draws truth and results on it: uint8 [H', W', 3].

    Args:
        path: the image file.
        image: its entry in the JSON.
        annotations, results: those of this image.
        names: category names by id.
        exif: as for `data.decoding.decode_image`.

    Raises:
        UserError: the image cannot be read, or has another size than its annotations refer to.
    """
    from data.photographs import read_photograph

    size = image["height"], image["width"]
    try:
        pixels = read_photograph(path, exif, size)
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('.')}; check --image_dir.") from None
    return draw_comparison(
        pixels,
        annotation_instances(annotations, names, *size),
        annotation_instances(results, names, *size),
    )


def write_samples(flags: argparse.Namespace) -> int:
    """Writes the samples and returns their number.

    Raises:
        UserError: something cannot be read or written.
    """
    ground_truth = load_ground_truth(flags.object_annotations_file, "")
    results = read_results(flags.results_dir, flags.min_score)
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    annotations = collections.defaultdict(list)
    for annotation in ground_truth["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    images = ground_truth["images"]
    chosen = images[:: max(1, len(images) // flags.num_samples)][: flags.num_samples]
    for image in chosen:
        path = os.path.join(flags.image_dir, image["file_name"])
        picture = draw_sample(
            path, image, annotations[image["id"]], results[image["id"]], names, flags.exif
        )
        # The id distinguishes files with the same name in several folders.
        name = f"{image['id']}-{os.path.splitext(os.path.basename(path))[0]}.png"
        _write_png(os.path.join(flags.output_dir, name), picture)
    return len(chosen)


def _write_png(path: str, picture: np.ndarray) -> None:
    try:
        files.make_folder(os.path.dirname(path))
        with files.whole_file(path, "wb") as file:
            Image.fromarray(picture).save(file, format="PNG")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--results_dir", required=True, help="Folder with bbox.json and segm.json.")
    parser.add_argument("--image_dir", required=True, help="Folder with the images.")
    parser.add_argument("--object_annotations_file", required=True, help="COCO JSON of the images.")
    parser.add_argument("--output_dir", required=True, help="Folder to write the samples to.")
    parser.add_argument(
        "--num_samples",
        type=int,
        default=12,
        help="Number of images, spread evenly over the dataset.",
    )
    parser.add_argument(
        "--min_score", type=float, default=0.3, help="Minimum box_score of the detections shown."
    )
    exif = DataConfig.__dataclass_fields__["exif"]
    parser.add_argument(
        "--exif", choices=("apply", "ignore"), default=exif.default, help=exif.metadata["help"]
    )
    flags = parser.parse_args(argv)
    if flags.num_samples < 1:
        parser.error("--num_samples must be at least 1")
    try:
        count = write_samples(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {count} images to {flags.output_dir}")
    return 0


def run() -> None:
    """Runs the command line; entry point of msrcnn-write-samples."""
    sys.exit(main())


if __name__ == "__main__":
    run()
