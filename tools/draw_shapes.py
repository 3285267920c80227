"""Draws a small COCO-format dataset of overlapping shapes, for trying out the software.

    python tools/draw_shapes.py --output_dir=D --num_train=300 --num_val=60

writes D/train, D/val and D/annotations/{train,val}.json. The same seed draws the same bytes. The
annotations use everything that COCO allows: polygons, compressed and uncompressed RLE, objects with
several parts and holes, crowds, images without objects, category ids with gaps. Masks show the
visible part: areas covered by a later shape are cut out of the earlier one.

Axes: H, W image.
"""

from __future__ import annotations

import argparse
import colorsys
import dataclasses
import json
import os
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask
from tqdm import tqdm

from data import files
from data.errors import UserError

CATEGORIES = (
    {"id": 2, "name": "disc", "supercategory": "round"},
    {"id": 3, "name": "ring", "supercategory": "round"},
    {"id": 7, "name": "box", "supercategory": "angular"},
    {"id": 11, "name": "triangle", "supercategory": "angular"},
    {"id": 12, "name": "star", "supercategory": "angular"},
    {"id": 20, "name": "pair", "supercategory": "round"},
)
_CROWD_CATEGORY = 2
_SMALLEST, _LARGEST = 28, 84  # Range of the length of a shape, pixels.
_LEAST_VISIBLE = 0.45  # Fraction of a shape that later ones must leave visible.
_EMPTY_SHARE, _CROWD_SHARE, _PNG_SHARE = 0.05, 0.06, 0.25


@dataclasses.dataclass(frozen=True)
class Shape:
    """A shape placed in an image.

    Attributes:
        category_id: COCO id of its category.
        parts: outlines, each float [points, 2] of (x, y) pixels.
        hole: outline of the hole, or None.
        is_crowd: whether it is a crowd of many small discs.
    """

    category_id: int
    parts: tuple[np.ndarray, ...]
    hole: np.ndarray | None = None
    is_crowd: bool = False


def _circle(x: float, y: float, radius: float, points: int = 40) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)


def _outlines(name: str, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Returns parts and hole of a kind of shape, within distance 1 of the origin."""
    if name == "disc":
        return [_circle(0, 0, 1)], None
    if name == "ring":
        return [_circle(0, 0, 1)], _circle(0, 0, rng.uniform(0.45, 0.6))
    if name == "pair":
        return [_circle(-0.53, 0, 0.45), _circle(0.53, 0, 0.45)], None
    if name == "box":
        slant = rng.uniform(0.5, 0.95)
        corners = np.arctan2([slant, slant, -slant, -slant], [1, -1, -1, 1])
        return [np.stack([np.cos(corners), np.sin(corners)], axis=1)], None
    points = 3 if name == "triangle" else 10
    radii = np.ones(points) if name == "triangle" else np.tile([1, 0.48], 5)
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return [radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)], None


def place_shape(rng: np.random.Generator, height: int, width: int) -> Shape:
    """Draws kind, size, rotation and position of a shape, up to a sixth outside the image."""
    category = CATEGORIES[rng.integers(len(CATEGORIES))]
    parts, hole = _outlines(category["name"], rng)
    radius = rng.uniform(_SMALLEST, _LARGEST) / 2
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    reach = radius * 2 / 3
    centre = rng.uniform([reach, reach], [width - reach, height - reach])

    def lay(outline: np.ndarray) -> np.ndarray:
        return np.round(radius * outline @ turn + centre, 2)

    return Shape(
        category["id"], tuple(lay(part) for part in parts), None if hole is None else lay(hole)
    )


def place_crowd(rng: np.random.Generator, height: int, width: int) -> Shape:
    """Places 8 to 14 discs, too small and too close to be told apart."""
    centre = rng.uniform([30, 30], [width - 30, height - 30])
    places = centre + rng.uniform(-24, 24, (rng.integers(8, 15), 2))
    discs = tuple(np.round(_circle(x, y, rng.uniform(4, 7), 16), 2) for x, y in places)
    return Shape(_CROWD_CATEGORY, discs, is_crowd=True)


def rasterise(shape: Shape, height: int, width: int) -> np.ndarray:
    """Rasterises the whole shape to bool [H, W], by COCO's rule for polygons."""
    polygons = [part.ravel().tolist() for part in shape.parts]
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    if shape.hole is not None:
        hole = coco_mask.frPyObjects([shape.hole.ravel().tolist()], height, width)
        mask = mask & ~coco_mask.decode(hole)[..., 0]
    return mask.astype(bool)


def arrange_shapes(
    rng: np.random.Generator, height: int, width: int
) -> tuple[list[Shape], list[np.ndarray]]:
    """Places shapes over each other.

    Returns:
        The shapes, the lowest first, and the visible part of each, bool [H, W].
    """
    if rng.random() < _EMPTY_SHARE:
        return [], []
    shapes: list[Shape] = []
    whole: list[np.ndarray] = []
    visible: list[np.ndarray] = []
    wanted = rng.integers(2, 7)
    if rng.random() < _CROWD_SHARE:
        shapes.append(place_crowd(rng, height, width))
        whole.append(rasterise(shapes[0], height, width))
        visible.append(whole[0])
    for _ in range(30):
        if len(shapes) == wanted:
            break
        shape = place_shape(rng, height, width)
        mask = rasterise(shape, height, width)
        remaining = [seen & ~mask for seen in visible]
        if all(
            left.sum() >= _LEAST_VISIBLE * full.sum()
            for left, full in zip(remaining, whole, strict=True)
        ):
            shapes.append(shape)
            whole.append(mask)
            visible = [*remaining, mask]
    return shapes, visible


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Makes waves in a random direction plus blotches, float [H, W] around 0."""
    y, x = np.mgrid[:height, :width]
    angle, length = rng.uniform(0, np.pi), rng.uniform(5, 30)
    waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length)
    size = rng.integers(3, 30)
    blotches = Image.fromarray(rng.normal(size=(height // size + 2, width // size + 2)))
    blotches = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC))
    return 0.5 * waves * rng.random() + 0.5 * blotches


def _shape_colour(category_id: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a colour; each kind prefers some hues, to help a short training, but they overlap."""
    index = [category["id"] for category in CATEGORIES].index(category_id)
    hue = (index / len(CATEGORIES) + rng.normal(0, 0.06)) % 1
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 1), rng.uniform(0.55, 1)))


def paint_picture(
    shapes: Sequence[Shape],
    visible: Sequence[np.ndarray],
    rng: np.random.Generator,
    height: int,
    width: int,
) -> np.ndarray:
    """Paints the visible parts over a textured grey background, with noise: uint8 [H, W, 3]."""
    tint = rng.uniform(70, 170) + rng.normal(0, 12, 3)
    pixels = tint + 22 * _texture(rng, height, width)[..., None]
    for shape, mask in zip(shapes, visible, strict=True):
        colour = _shape_colour(shape.category_id, rng)
        shade = 1 + 0.12 * _texture(rng, height, width)[mask]
        pixels[mask] = colour * shade[:, None]
    pixels = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    softened = np.asarray(pixels.filter(ImageFilter.GaussianBlur(0.6)), np.float64)
    noisy = softened + rng.normal(0, rng.uniform(2, 9), (height, width, 1))
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _counts(mask: np.ndarray) -> list[int]:
    """Returns uncompressed COCO run lengths of bool [H, W]: column by column, zeros first."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0] if flat[0] else [], [0], edges, [flat.size]])
    return np.diff(bounds).astype(int).tolist()


def describe_shape(shape: Shape, mask: np.ndarray, number: int) -> dict:
    """Makes a COCO annotation of a shape's visible part, without its id and image id.

    Args:
        shape: the shape.
        mask: bool [H, W], its visible part.
        number: selects the way to write the mask. Polygons are only used for shapes that are
            entirely visible and have no hole.
    """
    height, width = mask.shape
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    points = np.concatenate(shape.parts)
    inside = points.min() >= 0 and np.all(points <= [width, height])
    whole = inside and shape.hole is None and np.array_equal(mask, rasterise(shape, height, width))
    if shape.is_crowd or number % 3 == 0:
        segmentation = {"size": [height, width], "counts": _counts(mask)}
    elif whole:
        segmentation = [part.ravel().tolist() for part in shape.parts]
    else:
        segmentation = {"size": [height, width], "counts": rle["counts"].decode("ascii")}
    return {
        "category_id": shape.category_id,
        "iscrowd": int(shape.is_crowd),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(mask.sum()),
        "segmentation": segmentation,
    }


def draw_split(folder: str, first_id: int, count: int, seed: int, sides: tuple[int, int]) -> dict:
    """Draws the images of one split into a folder.

    Args:
        folder: folder for the images; made if missing.
        first_id: image id of the first one; the others follow.
        count: number of images.
        seed: determines an image together with its image id.
        sides: minimum and maximum length of an image side, pixels.

    Returns:
        The COCO dict of the split.
    """
    files.make_folder(folder)
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in tqdm(range(first_id, first_id + count), os.path.basename(folder), disable=None):
        rng = np.random.default_rng([seed, image_id])
        height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
        shapes, visible = arrange_shapes(rng, height, width)
        pixels = paint_picture(shapes, visible, rng, height, width)
        suffix, file_format = ("png", "PNG") if rng.random() < _PNG_SHARE else ("jpg", "JPEG")
        name = f"{image_id:06d}.{suffix}"
        with files.open_file(os.path.join(folder, name), "wb") as file:
            Image.fromarray(pixels).save(file, file_format, quality=92)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for shape, mask in zip(shapes, visible, strict=True):
            number = len(annotations) + 1
            description = describe_shape(shape, mask, number)
            annotations.append({"id": number, "image_id": image_id, **description})
    return {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}


def draw_data_set(
    output_dir: str, num_train: int, num_val: int, seed: int, sides: tuple[int, int]
) -> None:
    """Draws both splits; each annotation file is written last and atomically.

    Raises:
        UserError: the folder cannot be written to.
    """
    splits = {"train": (1, num_train), "val": (num_train + 1, num_val)}
    try:
        files.make_folder(os.path.join(output_dir, "annotations"))
        for split, (first_id, count) in splits.items():
            target = os.path.join(output_dir, "annotations", f"{split}.json")
            folder = os.path.join(output_dir, split)
            dataset = draw_split(folder, first_id, count, seed, sides)
            with files.whole_file(target) as file:
                json.dump(dataset, file)
    except OSError as error:
        raise UserError(
            f"--output_dir={output_dir}: cannot be written to ({error.strerror}); choose another "
            "folder."
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--output_dir", required=True, help="Folder to write the dataset to.")
    parser.add_argument("--num_train", type=int, default=300, help="Training pictures.")
    parser.add_argument("--num_val", type=int, default=60, help="Validation pictures.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random shapes.")
    parser.add_argument("--min_side", type=int, default=128, help="Minimum image side, in pixels.")
    parser.add_argument("--max_side", type=int, default=192, help="Maximum image side, in pixels.")
    flags = parser.parse_args(argv)
    if flags.num_train < 1 or flags.num_val < 1 or flags.seed < 0:
        parser.error("--num_train and --num_val must be at least 1, --seed at least 0")
    if not 96 <= flags.min_side <= flags.max_side:
        parser.error("--min_side must be at least 96 and at most --max_side")
    try:
        draw_data_set(
            flags.output_dir,
            flags.num_train,
            flags.num_val,
            flags.seed,
            (flags.min_side, flags.max_side),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"wrote {flags.num_train} training and {flags.num_val} validation images to "
        f"{flags.output_dir}"
    )
    return 0


def run() -> None:
    """Runs the command line; entry point of msrcnn-draw-shapes."""
    sys.exit(main())


if __name__ == "__main__":
    run()
