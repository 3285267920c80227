"""A tiny dataset in COCO format, drawn on the spot."""

import json
import pathlib

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data.conversion import Conversion

HEIGHT, WIDTH = 20, 30


def tiny_coco() -> dict:
    """Four images; polygons, both kinds of RLE, a crowd, an image without annotations."""
    disk = np.zeros([HEIGHT, WIDTH], np.uint8, order="F")
    disk[5:12, 8:19] = 1
    compressed = coco_mask.encode(disk)["counts"].decode()
    polygon = [2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]
    other_part = [15.5, 4.5, 25.0, 6.0, 20.0, 17.5]

    def annotation(number, image_id, category_id, bbox, segmentation, iscrowd=0):
        return {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": bbox,
            "area": bbox[2] * bbox[3] / 2,
            "iscrowd": iscrowd,
            "segmentation": segmentation,
        }

    crowd = {"size": [HEIGHT, WIDTH], "counts": [100, 40, HEIGHT * WIDTH - 140]}
    return {
        "images": [
            {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for number, name in ((42, "d.jpg"), (7, "a.jpg"), (9, "b.png"), (40, "c.jpg"))
        ],
        "annotations": [
            annotation(501, 7, 90, [2, 3, 10, 6], [polygon]),
            annotation(502, 7, 3, [2, 3, 23, 14.5], [polygon, other_part]),
            annotation(503, 9, 3, [8, 5, 11, 7], {"size": [HEIGHT, WIDTH], "counts": compressed}),
            annotation(504, 42, 18, [5, 0, 2, 20], crowd, iscrowd=1),
            annotation(505, 42, 90, [-4, 10, 10, 30], [polygon]),
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 3, "name": "car"},
            {"id": 18, "name": "dog"},
        ],
    }


def write_dataset(folder, content: dict):
    """Writes images/ and instances.json; returns both paths."""
    image_dir = folder / "images"
    image_dir.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for entry in content["images"]:
        pixels = noise.integers(0, 256, [HEIGHT, WIDTH, 3], np.uint8)
        Image.fromarray(pixels).save(image_dir / entry["file_name"])
    annotations_file = folder / "instances.json"
    annotations_file.write_text(json.dumps(content))
    return image_dir, annotations_file


def settings_of(folder, content=None, **changes) -> Conversion:
    """How to convert the dataset in folder/input, drawn if it is not there, to folder/out."""
    if not (folder / "input").exists():
        write_dataset(folder / "input", content or tiny_coco())
    arguments = {
        "image_dir": str(folder / "input" / "images"),
        "annotations_file": str(folder / "input" / "instances.json"),
        "output_prefix": str(folder / "out" / "train"),
        "num_shards": 2,
    }
    return Conversion(**{**arguments, **changes})


def contents(folder) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()}
