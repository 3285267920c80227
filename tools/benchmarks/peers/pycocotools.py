"""pycocotools' COCOeval on the results that `evaluate` evaluates."""

from __future__ import annotations

import contextlib
import io

import numpy as np

from tools.benchmarks import synthetic
from tools.benchmarks.peers import PeerSettings
from tools.benchmarks.stages import Workload

PACKAGES = ("pycocotools", "numpy")


def make_evaluate(settings: PeerSettings) -> Workload:
    """Makes the evaluation of one kind, from dicts to the twelve numbers."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = synthetic.read_coco(settings)
    reference = COCO()
    reference.dataset = coco
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
    for annotation in coco["annotations"]:
        # Results have to be compressed RLE.
        annotation["segmentation"] = reference.annToRLE(annotation)
    results = synthetic.draw_results(coco, np.random.default_rng(0))

    def run() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = coco
            truth.createIndex()
            found = [dict(entry) for entry in results]
            if settings.kind == "segm":
                # A box next to it would be evaluated instead.
                found = [{k: v for k, v in entry.items() if k != "bbox"} for entry in found]
            evaluation = COCOeval(truth, truth.loadRes(found), settings.kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return len(coco["images"])

    return run


WORKLOADS = {"evaluate": make_evaluate}
