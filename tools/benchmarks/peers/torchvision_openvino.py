"""torchvision's Mask R-CNN with ResNet-50 and FPN as an ONNX file, run by OpenVINO."""

from __future__ import annotations

from tools.benchmarks import synthetic
from tools.benchmarks.peers import PeerSettings, expect_detections
from tools.benchmarks.stages import Workload

PACKAGES = ("openvino", "torch", "torchvision", "numpy")
# As for our own models.
_OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


def make_export(settings: PeerSettings) -> Workload:
    """Makes the detection of one image by the file of `torchvision.write_exports`."""
    import openvino

    compiled = openvino.Core().compile_model(settings.exports, "CPU", _OPTIONS)
    request = compiled.create_infer_request()
    image = synthetic.draw_image(settings.image_size)

    def run() -> int:
        found = request.infer({"image": image})
        expect_detections([len(found["boxes"])])
        return 1

    return run


WORKLOADS = {"export": make_export}
