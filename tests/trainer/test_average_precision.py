"""COCO's numbers: the published ones, and random cases against pycocotools' COCOeval."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trainer.average_precision import evaluate_lvis, evaluate_results, measure_curves
from trainer.coco_report import METRICS
from trainer.lvis_federation import Federation

HEIGHT, WIDTH = 150, 180
BOTH, ALSO_BOTH, ONLY_OBJECTS, ONLY_DETECTIONS, NEITHER = CATEGORIES = [30, 2, 9, 11, 5]
SHAPES = {"bbox": "bbox", "segm": "segmentation"}
kinds = pytest.mark.parametrize("kind", SHAPES)


def ellipse(box):
    """Compressed RLE of the ellipse in a box [x, y, width, height], its centre always set."""
    x, y, width, height = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    across = (columns + 0.5 - x - width / 2) / width
    down = (rows + 0.5 - y - height / 2) / height
    mask = across**2 + down**2 <= 0.25
    mask[min(int(y + height / 2), HEIGHT - 1), min(int(x + width / 2), WIDTH - 1)] = True
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def draw_box(rng):
    """A box of any of COCO's three sizes inside the image."""
    sides = np.exp(rng.uniform(np.log(4), np.log(HEIGHT - 1), 2))
    return np.concatenate([rng.uniform(0, [WIDTH, HEIGHT] - sides), sides])


def make_entry(image_id, category_id, box, **more):
    """What annotations and results have in common."""
    return {
        "image_id": image_id,
        "category_id": int(category_id),
        "bbox": box.tolist(),
        "segmentation": ellipse(box),
        **more,
    }


def draw_truth(rng, image_ids):
    """A ground truth with crowds, objects that lie in one place, and images without objects."""
    annotations = []
    for image_id in image_ids:
        box = draw_box(rng)
        for _ in range(rng.choice([0, 1, 4, 12])):
            box = box if rng.random() < 0.1 else draw_box(rng)
            category = rng.choice([BOTH, ALSO_BOTH, ONLY_OBJECTS])
            entry = make_entry(image_id, category, box, iscrowd=int(rng.random() < 0.2))
            area = float(coco_mask.area(entry["segmentation"]))
            annotations.append({"id": len(annotations) + 1, "area": area, **entry})
    return {
        "images": [{"id": key, "height": HEIGHT, "width": WIDTH} for key in image_ids],
        "annotations": annotations,
        "categories": [{"id": key} for key in CATEGORIES],
    }


def draw_results(rng, truth):
    """Shifted objects and false detections, images mixed, with only eleven different scores."""
    shapes = [
        (
            annotation["image_id"],
            annotation["category_id"],
            annotation["bbox"] + rng.normal(0, 2, 4),
        )
        for annotation in truth["annotations"]
        for _ in range(rng.choice([0, 1, 2]))
        if annotation["category_id"] != ONLY_OBJECTS
    ]
    image_ids = [image["id"] for image in truth["images"]]
    for image_id in rng.choice(image_ids, 20):
        category = rng.choice([BOTH, ALSO_BOTH, ONLY_DETECTIONS])
        shapes.append((int(image_id), category, draw_box(rng)))
    # COCO counts the best 100 of a category in an image.
    shapes += [(image_ids[0], BOTH, draw_box(rng)) for _ in range(rng.choice([0, 130]))]
    return [
        make_entry(image_id, category, np.maximum(box, 0.5), score=rng.integers(11) / 10)
        for image_id, category, box in (shapes[index] for index in rng.permutation(len(shapes)))
    ]


def pycocotools_curves(truth, results, kind, image_ids):
    """The 12 numbers, and the arrays of precision and recall."""
    results = [
        {key: entry[key] for key in ("image_id", "category_id", "score", SHAPES[kind])}
        for entry in results
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = COCO()
        indexed.dataset = copy.deepcopy(truth)
        indexed.createIndex()
        evaluation = COCOeval(indexed, indexed.loadRes(results), kind)
        evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"], evaluation.eval["recall"]


@kinds
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_cases_equal_pycocotools(kind, seed):
    rng = np.random.default_rng(seed)
    truth = draw_truth(rng, [8, 3, 900, 1, 77, 12])
    results = draw_results(rng, truth)
    image_ids = [77, 3, 8, 12, 1]
    numbers, precision, recall = pycocotools_curves(truth, results, kind, image_ids)
    stats, by_category = evaluate_results(truth, results, kind, image_ids)
    curves = measure_curves(truth, results, kind, image_ids)
    np.testing.assert_allclose(curves.precision, precision, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves.recall, recall, rtol=0, atol=1e-12)
    np.testing.assert_allclose(list(stats.values()), numbers, rtol=0, atol=1e-12)
    expected = [precision[:, :, index, 0, -1].mean() for index in range(len(CATEGORIES))]
    assert list(by_category) == sorted(CATEGORIES)
    np.testing.assert_allclose(list(by_category.values()), expected, rtol=0, atol=1e-12)


@kinds
def test_cocos_own_results(shared_data, kind):
    folder = shared_data / "results" / "cocoapi_val2014_fake100"
    expected = json.loads((folder / "expected_stats.json").read_text())["pycocotools_2_0_11"][kind]
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    image_ids = [image["id"] for image in truth["images"]]
    stats, by_category = evaluate_results(truth, results, kind, image_ids)
    assert stats == pytest.approx(expected, abs=1e-12)
    measured = [value for value in by_category.values() if value > -1]
    assert np.mean(measured) == pytest.approx(stats["AP"], abs=1e-12)


def one_object(image_id):
    """A ground truth of one object, and the detection that finds it."""
    entry = make_entry(image_id, BOTH, np.array([20.0, 30.0, 50.0, 40.0]))
    return {
        "images": [{"id": image_id, "height": HEIGHT, "width": WIDTH}],
        "annotations": [{**entry, "id": 0, "area": 1500.0, "iscrowd": 0}],
        "categories": [{"id": key} for key in CATEGORIES],
    }, {**entry, "score": 0.5}


@kinds
def test_results_may_be_empty(kind):
    truth, _ = one_object(4)
    stats, by_category = evaluate_results(truth, [], kind, [4])
    assert list(stats) == list(METRICS)
    assert stats == {key: -1 if key[-1] in "sl" else 0 for key in METRICS}
    assert by_category == {key: 0 if key == BOTH else -1 for key in sorted(CATEGORIES)}


@kinds
def test_nothing_to_detect_is_minus_one(kind):
    truth, detection = one_object(4)
    for bare, image_ids in (({**truth, "annotations": []}, [4]), (truth, [])):
        stats, by_category = evaluate_results(bare, [detection], kind, image_ids)
        assert set(stats.values()) == set(by_category.values()) == {-1}
    stats, by_category = evaluate_results({**truth, "categories": []}, [detection], kind, [4])
    assert set(stats.values()) == {-1} and not by_category


@kinds
def test_image_ids_above_float64_stay_apart(kind):
    # Hashes of file names are as large. Were the images taken for one, both objects were found.
    image_ids = [2**62, 2**62 + 1]
    truth, detection = one_object(image_ids[0])
    other, _ = one_object(image_ids[1])
    both = {key: truth[key] + other[key] for key in ("images", "annotations")}
    stats, _ = evaluate_results({**truth, **both}, [detection, detection], kind, image_ids)
    assert stats["AR100"] == 0.5


@kinds
def test_ground_truth_and_results_stay_as_they_are(kind):
    truth, detection = one_object(4)
    before = copy.deepcopy((truth, detection))
    evaluate_results(truth, [detection], kind, [4])
    assert (truth, detection) == before


def inner(mask, distance):
    """Pixels whose neighbours up to a distance are all set, also beyond the image's border."""
    padded = np.pad(mask, distance)
    steps = range(2 * distance + 1)
    shifted = [padded[y : y + mask.shape[0], x : x + mask.shape[1]] for y in steps for x in steps]
    return np.all(shifted, axis=0)


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 5])
def test_boundary_iou_is_that_of_contours(offset):
    # 100 rows and 100 columns, moved by a few rows: the mask IoU stays above 0.9.
    target, moved = np.zeros((2, HEIGHT, WIDTH), bool)
    target[20:120, 30:130] = moved[20 + offset : 120 + offset, 30:130] = True
    distance = round(0.02 * np.hypot(HEIGHT, WIDTH))
    contours = [mask & ~inner(mask, distance) for mask in (target, moved)]
    mask_iou, contour_iou = (np.sum(a & b) / np.sum(a | b) for a, b in ((target, moved), contours))
    assert mask_iou > 0.9 and contour_iou <= mask_iou
    rles = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in (target, moved)]
    shapes = [{**rle, "counts": rle["counts"].decode()} for rle in rles]
    truth, detection = one_object(4)
    truth["annotations"][0] |= {"segmentation": shapes[0], "area": 10000.0}
    detection["segmentation"] = shapes[1]
    stats, _ = evaluate_results(truth, [detection], "boundary", [4])
    assert stats["AP"] == pytest.approx(np.mean(contour_iou >= np.linspace(0.5, 0.95, 10)))


def test_lvis_counts_only_what_is_known():
    # The category has an object in image 1; is known to be absent from 2 and unknown in 3; and is
    # annotated in part in 4. So the false detections in 1 and 2 count, those in 3 and 4 do not.
    place, other = np.array([20.0, 30.0, 50.0, 40.0]), np.array([100.0, 90.0, 40.0, 40.0])
    truth, _ = one_object(1)
    second, _ = one_object(4)
    truth = {
        **truth,
        "images": [{"id": n, "height": HEIGHT, "width": WIDTH} for n in (1, 2, 3, 4)],
        "annotations": truth["annotations"] + second["annotations"],
    }
    none = frozenset()
    federation = Federation(
        negative={1: none, 2: frozenset({BOTH}), 3: none, 4: none},
        not_exhaustive={1: none, 2: none, 3: none, 4: frozenset({BOTH})},
        frequency={BOTH: "r", ALSO_BOTH: "c"},
    )

    def measure(*false_in):
        results = [make_entry(n, BOTH, place, score=0.5) for n in (1, 4)]
        results += [make_entry(n, BOTH, other, score=0.9) for n in false_in]
        return evaluate_lvis(truth, results, "segm", [1, 2, 3, 4], federation)

    metrics, by_category = measure(3, 4)
    assert metrics == pytest.approx(
        {"AP": 1, "AP50": 1, "AP75": 1, "APs": -1, "APm": 1, "APl": -1, "APr": 1, "APc": -1,
         "APf": -1, "AR300": 1, "ARs": -1, "ARm": 1, "ARl": -1}
    )  # fmt: skip
    assert by_category == {key: pytest.approx(1) if key == BOTH else -1 for key in CATEGORIES}
    # One false detection before two right ones: precision 2 / 3 everywhere; two: 1 / 2.
    assert measure(1, 3)[0]["AP"] == pytest.approx(2 / 3)
    assert measure(1, 2)[0]["AP"] == pytest.approx(1 / 2)


def test_lvis_counts_the_best_300_of_an_image():
    truth, detection = one_object(4)
    federation = Federation({4: frozenset()}, {4: frozenset()}, {})
    others = [
        make_entry(4, ALSO_BOTH, np.array([20.0, 30.0, 50.0, 40.0]), score=0.9) for _ in range(300)
    ]
    for number, recall in ((299, 1), (300, 0)):
        results = [detection, *others[:number]]
        metrics, _ = evaluate_lvis(truth, results, "bbox", [4], federation)
        assert metrics["AR300"] == recall


@kinds
@pytest.mark.parametrize("seed", range(3))
def test_random_cases_equal_hotcoco_in_lvis_style(kind, seed, tmp_path):
    hotcoco = pytest.importorskip("hotcoco")
    rng = np.random.default_rng(seed)
    truth = draw_truth(rng, [8, 3, 900, 1, 77, 12])
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    results = draw_results(rng, truth)
    truth["categories"] = [
        {"id": key, "name": str(key), "frequency": "rcf"[n % 3]} for n, key in enumerate(CATEGORIES)
    ]
    for image in truth["images"]:
        image["file_name"] = "x"
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = rng.choice(CATEGORIES, 2, replace=False).tolist()
    federation = Federation(
        {image["id"]: frozenset(image["neg_category_ids"]) for image in truth["images"]},
        {image["id"]: frozenset(image["not_exhaustive_category_ids"]) for image in truth["images"]},
        {category["id"]: category["frequency"] for category in truth["categories"]},
    )
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(
        json.dumps([{key: r[key] for key in ("image_id", "category_id", "score", SHAPES[kind])}
                    for r in results])
    )  # fmt: skip
    coco = hotcoco.COCO(str(tmp_path / "truth.json"))
    detections = coco.load_res(str(tmp_path / "results.json"))
    evaluation = hotcoco.COCOeval(coco, detections, kind, lvis_style=True)
    evaluation.run()
    theirs = evaluation.get_results()
    image_ids = [image["id"] for image in truth["images"]]
    metrics, _ = evaluate_lvis(truth, results, kind, image_ids, federation)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
    assert {name: metrics[name] for name in names} == pytest.approx(
        {name: theirs[name] for name in names}, abs=1e-12
    )
    assert metrics["AR300"] == pytest.approx(theirs["AR@300"], abs=1e-12)
