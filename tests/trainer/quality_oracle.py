"""The numbers of docs/METRICS.md again, in plain loops, from their definitions and pixels."""

import math

import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 120, 150
AREAS = {"all": (0, 1e10), "small": (0, 1024), "medium": (1024, 9216), "large": (9216, 1e10)}
COCO_THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def rectangle(x, y, width, height):
    """Pixels of a rectangle, bool."""
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[y : y + height, x : x + width] = True
    return pixels


def encode(pixels):
    """Compressed RLE of pixels."""
    rle = coco_mask.encode(np.asfortranarray(pixels, np.uint8))
    return {"size": list(pixels.shape), "counts": rle["counts"].decode()}


def shape_of(x, y, width, height):
    """The bbox, segmentation and pixels of a rectangle in whole pixels."""
    pixels = rectangle(x, y, width, height)
    return {"bbox": [x, y, width, height], "segmentation": encode(pixels), "pixels": pixels}


def annotate(image_id, category_id, shape, **more):
    """An annotation of a shape of `shape_of`."""
    area = int(shape["pixels"].sum())
    return {"image_id": image_id, "category_id": category_id, "area": area, "iscrowd": 0, **shape,
            **more}  # fmt: skip


def detect(image_id, category_id, shape, box_score, mask_iou=1.0):
    """A detection of a shape, with its three scores."""
    scores = {"box_score": box_score, "mask_iou": mask_iou, "mask_score": box_score * mask_iou}
    return {"image_id": image_id, "category_id": category_id, **shape, **scores,
            "score": scores["mask_score"]}  # fmt: skip


def make_truth(annotations, num_images=1, names=("cat", "dog")):
    """A COCO dict of categories 4, 5, …"""
    sizes = {"height": HEIGHT, "width": WIDTH}
    return {
        "images": [{"id": number, **sizes} for number in range(1, num_images + 1)],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, 1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 4)],
    }


def draw_case(rng, num_images=4):
    """A ground truth and results with crowds, ties, all sizes, and a category without objects."""

    def draw_shape():
        sides = np.exp(rng.uniform(np.log(6), np.log(119), 2)).astype(int)
        sides = np.array([32, 32]) if rng.random() < 0.1 else sides
        x, y = rng.integers(0, [WIDTH, HEIGHT] - sides, endpoint=True)
        return x, y, *sides

    def move(box):
        corner = np.clip(np.array(box[:2]) + rng.integers(-4, 5, 2), 0, [WIDTH - 6, HEIGHT - 6])
        sides = np.maximum(np.array(box[2:]) + rng.integers(-4, 5, 2), 3)
        return *corner, *np.minimum(sides, [WIDTH, HEIGHT] - corner)

    annotations, results = [], []
    for image_id in range(1, num_images + 1):
        boxes = []
        for _ in range(rng.integers(0, 7)):
            category = int(rng.choice([4, 5]))
            boxes.append((draw_shape(), category))
            shape = shape_of(*map(int, boxes[-1][0]))
            crowd = int(rng.random() < 0.2)
            annotations.append(annotate(image_id, category, shape, iscrowd=crowd))
        for _ in range(rng.integers(0, 14)):
            box, category = draw_shape(), int(rng.choice([4, 5, 6]))
            if boxes and rng.random() < 0.7:
                box, meant = boxes[rng.integers(len(boxes))]
                box, category = move(box), meant if rng.random() < 0.8 else category
            scores = rng.integers(1, 12, 2) / 11.5
            results.append(
                detect(image_id, category, shape_of(*map(int, box)), *map(float, scores))
            )
    return make_truth(annotations, num_images, ("cat", "dog", "bird")), results


def overlap(detection, target):
    """IoU in pixels; for crowds the share of the detection that is covered."""
    common = np.sum(detection["pixels"] & target["pixels"])
    if target["iscrowd"]:
        return common / np.sum(detection["pixels"])
    return common / np.sum(detection["pixels"] | target["pixels"])


class Oracle:
    """Plain definitions over one ground truth and its results."""

    def __init__(self, truth, results):
        self.truth, self.results = truth, results
        self.overlaps = {
            (d, t): overlap(detection, target)
            for d, detection in enumerate(results)
            for t, target in enumerate(truth["annotations"])
            if detection["image_id"] == target["image_id"]
        }

    def objects(self, category, area):
        """Number of objects that count."""
        low, high = AREAS[area]
        return sum(
            t["category_id"] == category and not t["iscrowd"] and low <= t["area"] <= high
            for t in self.truth["annotations"]
        )

    def best_iou(self, d):
        """The highest IoU of a detection with an object of its category."""
        targets = self.truth["annotations"]
        return max(
            (iou for (e, t), iou in self.overlaps.items()
             if e == d and not targets[t]["iscrowd"]
             and targets[t]["category_id"] == self.results[d]["category_id"]),
            default=0.0,
        )  # fmt: skip

    def verdicts(self, category, area, tau, scores, lowest=-math.inf):
        """(score, "hit", "false" or "ignored", IoU) of a category's detections, the best first."""
        said = []
        for image in self.truth["images"]:
            mine = [
                d for d, detection in enumerate(self.results)
                if detection["image_id"] == image["id"] and detection["category_id"] == category
                and scores[d] >= lowest
            ]  # fmt: skip
            mine = sorted(mine, key=lambda d: -scores[d])[:100]
            said += self._verdicts(image["id"], category, AREAS[area], tau, scores, mine)
        return sorted(said, key=lambda verdict: -verdict[0])

    def _verdicts(self, image_id, category, area, tau, scores, ranked):
        targets = {
            t: target for t, target in enumerate(self.truth["annotations"])
            if target["image_id"] == image_id and target["category_id"] == category
        }  # fmt: skip
        outside = {t for t, x in targets.items() if not area[0] <= x["area"] <= area[1]}
        ignored = outside | {t for t, target in targets.items() if target["iscrowd"]}
        taken, said = set(), []
        for d in ranked:
            reached = {
                t: self.overlaps[d, t] for t in targets
                if t not in taken and self.overlaps[d, t] >= tau and self.overlaps[d, t] > 0
            }  # fmt: skip
            counted = {t: iou for t, iou in reached.items() if t not in ignored}
            choice = counted or reached
            size = self.results[d]["pixels"].sum()
            if choice:
                # Of equal ones, COCO takes the last.
                best = max(choice, key=lambda t: (choice[t], t))
                if not targets[best]["iscrowd"]:
                    taken.add(best)
                said.append((scores[d], "hit" if counted else "ignored", choice[best]))
            elif area[0] <= size <= area[1]:
                said.append((scores[d], "false", 0.0))
            else:
                said.append((scores[d], "ignored", 0.0))
        return said

    def lrp(self, category, area, scores, lowest=-math.inf):
        """LRP of the detections with at least some score, and its parts (None if undefined)."""
        said = self.verdicts(category, area, 0.5, scores, lowest)
        errors = [1 - iou for _, verdict, iou in said if verdict == "hit"]
        true, false = len(errors), sum(verdict == "false" for _, verdict, _ in said)
        objects = self.objects(category, area)
        missed = objects - true
        return (
            (sum(errors) / 0.5 + false + missed) / (true + false + missed),
            sum(errors) / true if true else None,
            false / (true + false) if true + false else None,
            missed / objects,
        )

    def optimal_lrp(self, category, area, scores):
        """The lowest LRP of any threshold, its parts, and the threshold."""
        said = self.verdicts(category, area, 0.5, scores)
        counted = sorted({score for score, verdict, _ in said if verdict != "ignored"})
        found = [(*self.lrp(category, area, scores, lowest), lowest) for lowest in counted]
        found = [each for each in found if each[1] is not None]  # some detection is true
        # Of equal ones, the highest threshold.
        return min(found, key=lambda each: (round(each[0], 12), -each[4]), default=None)

    def calibration(self, category, area, scores):
        """LaECE₀ and LaACE₀, None without detections."""
        said = self.verdicts(category, area, 0.0, scores)
        pairs = [(s, iou if v == "hit" else 0.0) for s, v, iou in said if v != "ignored"]
        if not pairs:
            return None, None
        laece = 0.0
        for number in range(25):
            low, high = number / 25, (number + 1) / 25
            within = [
                (s, iou) for s, iou in pairs if low < s <= high or (number == 0 and s == 0)
            ]  # fmt: skip
            if within:
                score, iou = (sum(values) / len(within) for values in zip(*within, strict=True))
                laece += len(within) / len(pairs) * abs(score - iou)
        return laece, sum(abs(s - iou) for s, iou in pairs) / len(pairs)

    def average_precision(self, category, area, scores):
        """COCO's AP over ten thresholds: at 101 recalls, the best precision from there on."""
        total = 0.0
        for tau in COCO_THRESHOLDS:
            points, true, false = [], 0, 0
            for _, verdict, _ in self.verdicts(category, area, tau, scores):
                true += verdict == "hit"
                false += verdict == "false"
                if verdict != "ignored":
                    points.append((true / self.objects(category, area), true / (true + false)))
            for recall in np.linspace(0, 1, 101):
                total += max((p for r, p in points if r >= recall), default=0.0) / 101
        return total / len(COCO_THRESHOLDS)

    def true_pairs(self, category, area, scores):
        """Score and IoU of the true detections."""
        said = self.verdicts(category, area, 0.5, scores)
        return [(score, iou) for score, verdict, iou in said if verdict == "hit"]
