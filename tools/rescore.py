"""Rates masks of any origin with a trained model: how well does each outline its object?

    python tools/rescore.py --model=M --results=segm.json --image_dir=D \\
        --object_annotations_file=F --output=O

reads the masks of any program in COCO results format, or without --results the annotations in F.
It writes them to O in COCO results format with `mask_iou`, the IoU that the MaskIoU head of the
model expects, and `mask_score`, which is `score` × `mask_iou`. The worst outlines are listed. AP
before and after is printed if F has annotations and --results is given.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from data import files
from data.errors import UserError
from data.progress import ProgressMeter
from data.tensorflow_log import quieten_tensorflow
from trainer.flags import exit_status, parse_command_line, require_flags
from trainer.given_results import (
    Entry,
    annotations_as_results,
    decode_mask,
    read_results,
)

_DESCRIPTION = (
    "python tools/rescore.py --model=M --image_dir=D --object_annotations_file=F --output=O"
)


def rate_entries(
    model, entries: Sequence[Entry], ground_truth: Mapping, image_dir: str
) -> list[Entry]:
    """Returns the entries with `mask_iou` and `mask_score`, in their order.

    Args:
        model: `msrcnn.Predictor`.
        entries: in COCO results format.
        ground_truth: COCO-format dict of their images and categories.
        image_dir: folder of the image files.

    Raises:
        UserError: the model does not know a category or has no MaskIoU head, or an image or a mask
            cannot be read or has another size.
    """
    labels = _labels(entries, ground_truth["categories"], model.categories)
    images = {image["id"]: image for image in ground_truth["images"]}
    places: dict[int, list[int]] = collections.defaultdict(list)
    for place, entry in enumerate(entries):
        places[entry["image_id"]].append(place)
    rated: list[Entry] = list(entries)
    with ProgressMeter("Rating", len(places)) as meter:
        for image_id, group in places.items():
            members = [entries[place] for place in group]
            mask_ious = _rate_in(model, images[image_id], members, labels, image_dir)
            for place, mask_iou in zip(group, mask_ious, strict=True):
                score = round(entries[place]["score"] * mask_iou, 8)
                rated[place] = {**entries[place], "mask_iou": mask_iou, "mask_score": score}
            meter.update()
    return rated


def _rate_in(
    model, image: Mapping, entries: Sequence[Entry], labels: Mapping[int, int], image_dir: str
) -> list[float]:
    """Rates the entries of one image."""
    size = image["height"], image["width"]
    masks = [decode_mask(entry, *size) for entry in entries]
    path = os.path.join(image_dir, image["file_name"])
    classes = [labels[entry["category_id"]] for entry in entries]
    try:
        return [round(float(value), 6) for value in model.rate(path, masks, classes)]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _labels(
    entries: Sequence[Entry], theirs: Sequence[Mapping], known: Sequence[Mapping]
) -> dict[int, int]:
    """Maps the ids of the entries' categories to the model's labels, by name."""
    from trainer.categories import list_names, pair_by_name

    used = {entry["category_id"] for entry in entries}
    if strangers := used - {category["id"] for category in theirs}:
        raise UserError(
            f"the results have the category id {min(strangers)}, which --object_annotations_file "
            "does not list: are they of another dataset?"
        )
    pairs = [(entry, own) for entry, own in pair_by_name(theirs, known) if entry["id"] in used]
    if unknown := [entry for entry, own in pairs if own is None]:
        raise UserError(
            f"the model does not know {list_names(unknown)}; it can rate masks of "
            f"{list_names(known)}."
        )
    return {entry["id"]: own["label"] for entry, own in pairs}


def describe_worst(entries: Sequence[Entry], ground_truth: Mapping, count: int) -> list[str]:
    """Describes the entries with the lowest `mask_iou` in a line each."""
    file_names = {image["id"]: image["file_name"] for image in ground_truth["images"]}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    worst = sorted(entries, key=lambda entry: entry["mask_iou"])[:count]
    return [
        f"  {entry['mask_iou']:.2f}  {file_names[entry['image_id']]}, "
        f"{names[entry['category_id']]}"
        + (f", annotation {entry['id']}" if "id" in entry else f", score {entry['score']:.2f}")
        for entry in worst
    ]


def _compare(entries: Sequence[Entry], ground_truth: Mapping) -> str:
    """States the AP of masks ranked by `score` and by `mask_score`."""
    from trainer.average_precision import evaluate_results
    from trainer.coco_ground_truth import complete_ground_truth, segmentation_to_rle

    images = {image["id"]: image for image in ground_truth["images"]}
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    truth = complete_ground_truth(ground_truth, names)
    found = []
    for entry in entries:
        image = images[entry["image_id"]]
        rle = segmentation_to_rle(entry["segmentation"], image["height"], image["width"])
        found.append({**entry, "segmentation": rle})
    ap = {}
    for name in ("score", "mask_score"):
        ranked = [{**entry, "score": entry[name]} for entry in found]
        ap[name] = evaluate_results(truth, ranked, "segm", images.keys())[0]["AP"]
    return (
        f"mask AP {ap['score']:.4f} ranked by score, {ap['mask_score']:.4f} by mask_score "
        f"({ap['mask_score'] - ap['score']:+.4f})"
    )


def _define_flags(flag_values: flags.FlagValues) -> None:
    texts = {
        "model": "model_dir of a training of a system with a MaskIoU head.",
        "results": "Masks to rate, in COCO results format; empty: the annotations.",
        "image_dir": "Folder with the images.",
        "object_annotations_file": "COCO JSON of the images.",
        "output": "JSON to write.",
    }
    for name, text in texts.items():
        flags.DEFINE_string(name, "", text, flag_values=flag_values)
    flags.DEFINE_integer(
        "num_worst", 10, "Number of the worst outlines to list.",
        lower_bound=0, flag_values=flag_values,
    )  # fmt: skip


def rescore(values: Mapping[str, Any], settings: Mapping[str, object]) -> int:
    """Rates the masks that the flags name, writes and reports them; returns the exit status."""
    from trainer.coco_ground_truth import load_ground_truth

    truth = load_ground_truth(values["object_annotations_file"], "")
    if values["results"]:
        entries = read_results(files.expand(values["results"]), truth["images"])
    else:
        entries = annotations_as_results(truth)
    quieten_tensorflow()
    from trainer.predictor import load

    model = load(values["model"], **settings)
    image_dir = files.expand(values["image_dir"])
    rated = rate_entries(model, entries, truth, image_dir)
    output = files.expand(values["output"])
    with files.whole_file(output) as file:
        json.dump(rated, file)
    if values["results"] and truth["annotations"]:
        print(_compare(rated, truth))
    if values["num_worst"]:
        print("The outlines that are expected to fit worst (expected IoU):")
        print("\n".join(describe_worst(rated, truth, values["num_worst"])))
    print(f"wrote {len(rated)} rated masks to {output}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    flag_values = command.flag_values
    require_flags(flag_values, "model", "image_dir", "object_annotations_file", "output")
    names = ("model", "results", "image_dir", "object_annotations_file", "output", "num_worst")
    values = {name: flag_values[name].value for name in names}
    return exit_status(lambda: rescore(values, command.given))


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
