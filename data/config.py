"""Settings of everything between the TFRecords and a batch."""

from __future__ import annotations

import dataclasses
import re

# Pyramid levels that have anchors, P2 to P6; level l has stride 2**l.
MIN_LEVEL, MAX_LEVEL = 2, 6


def setting(default, help: str):
    """A dataclass field that also carries the text its command-line flag shows."""
    return dataclasses.field(default=default, metadata={"help": help})


def require(condition: bool, name: str, value, expected: str) -> None:
    """Raises a ValueError that names the setting, its value and what was expected of it."""
    if not condition:
        raise ValueError(f"--{name}={value}: expected {expected}.")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Reading, augmenting, resizing and anchor matching (`data/`)."""

    train_file_pattern: str = setting("", "Glob of the training TFRecord shards.")
    eval_file_pattern: str = setting("", "Glob of the evaluation TFRecord shards.")
    train_batch_size: int = setting(16, "Images a training step sees, over all replicas.")
    eval_batch_size: int = setting(8, "Images an evaluation step sees, over all replicas.")
    seed: int = setting(0, "Seed of every random draw: order, augmentation, sampling, weights.")
    deterministic: bool = setting(
        False, "Give up speed so that two runs of one command are equal bit for bit."
    )

    canvases: tuple[str, ...] = setting(
        ("832x1344", "1344x832", "1024x1024"),
        "Static sizes (height x width, multiples of 32) that images are padded to; each image "
        "goes to the one it fills best, and a batch holds one of them.",
    )
    short_side: int = setting(800, "Length the shorter image side is resized to, in pixels.")
    long_side: int = setting(1333, "Longest the longer side may become, in pixels.")
    train_short_side_min: int = setting(
        640, "In training the short side is drawn between this and --short_side."
    )
    scale_jitter_min: float = setting(
        1.0, "In training the resize scale is multiplied by a number between this and the next."
    )
    scale_jitter_max: float = setting(1.0, "What sticks out of the canvas is cropped at random.")
    horizontal_flip: float = setting(0.5, "Probability of mirroring left to right in training.")
    vertical_flip: float = setting(0.0, "Probability of mirroring top to bottom in training.")
    max_instances: int = setting(100, "Ground truths an image keeps; the rest is dropped.")
    max_polygon_vertices: int = setting(
        512,
        "Vertices of an object's polygons, each one's first counted twice, that there is room for "
        "with --mask_target=polygon.",
    )
    mask_crop_size: int = setting(
        112, "Side of the box-cropped ground-truth masks that travel to the device."
    )

    anchor_sizes: tuple[float, ...] = setting(
        (32.0, 64.0, 128.0, 256.0, 512.0), "Square root of the anchor area at each level, pixels."
    )
    anchor_ratios: tuple[float, ...] = setting((0.5, 1.0, 2.0), "Anchor height over width.")
    anchor_rounding: bool = setting(
        False, "Round the anchors' corners to whole pixels, as torchvision's are."
    )
    rpn_positive_iou: float = setting(0.7, "Anchors with at least this IoU are positive.")
    rpn_negative_iou: float = setting(0.3, "Anchors whose best IoU is below this are negative.")
    rpn_forced_match: str = setting(
        "best",
        "The best anchors of each box are positive and learn the box they overlap most (best), or "
        "only those that reach --rpn_negative_iou, and they learn the box itself (reassign).",
    )
    rpn_samples_per_image: int = setting(256, "Anchors an image contributes to the RPN loss.")
    rpn_positive_fraction: float = setting(0.5, "Largest share of positives among them.")
    rpn_ignore_crowds: bool = setting(
        False, "Never take anchors lying at least 0.7 inside a crowd box as negatives."
    )

    shuffle_megabytes: int = setting(
        64, "Memory for the shuffle buffer of still serialised records, in MB."
    )
    input_threads: int = setting(0, "Threads of the input pipeline; 0 leaves it to tf.data.")
    data_service: str = setting(
        "",
        "Dispatcher of a tf.data service (grpc://HOST:PORT) whose workers read and prepare the "
        "images; empty: this host does.",
    )

    def __post_init__(self):
        for name in (
            "train_batch_size",
            "eval_batch_size",
            "max_instances",
            "short_side",
            "long_side",
            "rpn_samples_per_image",
            "max_polygon_vertices",
            "mask_crop_size",
            "shuffle_megabytes",
            "train_short_side_min",
        ):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for name in (
            "horizontal_flip",
            "vertical_flip",
            "rpn_positive_fraction",
            "rpn_positive_iou",
            "rpn_negative_iou",
        ):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        require(
            0 < self.rpn_negative_iou <= self.rpn_positive_iou,
            "rpn_negative_iou",
            self.rpn_negative_iou,
            f"above 0, at most --rpn_positive_iou={self.rpn_positive_iou}",
        )
        require(
            self.rpn_forced_match in ("best", "reassign"),
            "rpn_forced_match",
            self.rpn_forced_match,
            "best or reassign",
        )
        require(
            self.train_short_side_min <= self.short_side,
            "train_short_side_min",
            self.train_short_side_min,
            f"at most --short_side={self.short_side}",
        )
        require(
            0 < self.scale_jitter_min <= self.scale_jitter_max,
            "scale_jitter_min",
            self.scale_jitter_min,
            f"above 0, at most {self.scale_jitter_max}",
        )
        require(
            len(self.anchor_sizes) == MAX_LEVEL - MIN_LEVEL + 1,
            "anchor_sizes",
            self.anchor_sizes,
            f"one size for each level from {MIN_LEVEL} to {MAX_LEVEL}",
        )
        require(
            re.fullmatch(r"(grpc://[^/]+:\d+)?", self.data_service) is not None,
            "data_service",
            self.data_service,
            "grpc://HOST:PORT",
        )
        require(
            not (self.deterministic and self.data_service),
            "data_service",
            self.data_service,
            "none with --deterministic, since a service's workers deliver in no fixed order",
        )
        require(len(self.canvases) > 0, "canvases", self.canvases, "at least one size")
        for canvas in self.canvases:
            match = re.fullmatch(r"(\d+)x(\d+)", canvas)
            sides = [int(side) for side in match.groups()] if match else [0]
            require(
                all(side > 0 and side % 32 == 0 for side in sides),
                "canvases",
                canvas,
                "HEIGHTxWIDTH with sides that are multiples of 32, such as 832x1344",
            )

    @property
    def canvas_sizes(self) -> tuple[tuple[int, int], ...]:
        """The canvases as (height, width) pairs."""
        return tuple(tuple(int(side) for side in canvas.split("x")) for canvas in self.canvases)
