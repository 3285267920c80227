"""torchvision's Mask R-CNN with ResNet-50 and FPN as an ONNX file, run by ONNX Runtime."""

from __future__ import annotations

import os

from tools.benchmarks import synthetic
from tools.benchmarks.peers import PeerSettings, expect_detections
from tools.benchmarks.stages import Workload

PACKAGES = ("onnxruntime", "torch", "torchvision", "numpy")


def make_export(settings: PeerSettings) -> Workload:
    """Makes the detection of one image by the file of `torchvision.write_exports`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(
        settings.exports, options, providers=["CPUExecutionProvider"]
    )
    image = synthetic.draw_image(settings.image_size)

    def run() -> int:
        boxes, *_ = session.run(None, {"image": image})
        expect_detections([len(boxes)])
        return 1

    return run


WORKLOADS = {"export": make_export}
