"""Settings of the input pipeline, from TFRecords to batches."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Protocol

from data.augmentations import AUGMENTATIONS, SCENES
from data.settings import (
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    Check,
    Relation,
    at_most,
    between,
    check_settings,
    each,
    one_of,
    path_setting,
    predictive_setting,
    room_in,
    setting,
)

# Anchor indices have to be exact in single precision.
MOST_ANCHORS = 2**24

# Sides of canvases are multiples of it.
CANVAS_MULTIPLE = 32

NEGATIVE_AREAS = ("image", "padded", "canvas")

_CANVAS = re.compile(r"(\d+)x(\d+)")


def _is_canvas(text: str) -> bool:
    match = _CANVAS.fullmatch(text)
    return bool(match) and all(
        int(side) > 0 and int(side) % CANVAS_MULTIPLE == 0 for side in match.groups()
    )


CANVAS = Check("HEIGHTxWIDTH with sides that are multiples of 32, such as 832x1344", _is_canvas)
SERVICE = Check(
    "grpc://HOST:PORT", lambda text: re.fullmatch(r"(grpc://[^/]+:\d+)?", text) is not None
)


def _scale_canvas(canvas: tuple[int, int], factor: float) -> tuple[int, int]:
    """Returns the smallest canvas that holds another one scaled by `factor`."""
    units = (math.ceil(side * factor / CANVAS_MULTIPLE - 1e-6) for side in canvas)
    return tuple(unit * CANVAS_MULTIPLE for unit in units)


def _num_anchors(config: DataConfig, canvas: tuple[int, int]) -> int:
    strides = [2**level for level in config.anchor_levels]
    cells = sum(math.prod(-(-side // stride) for side in canvas) for stride in strides)
    return cells * config.anchors_per_cell


FEW_ANCHORS = Relation(
    lambda canvases, config: (
        f"canvases with fewer than {MOST_ANCHORS} anchors, also after scaling by --test_scales"
    ),
    lambda canvases, config: (
        max(
            _num_anchors(config, canvas)
            for canvas in itertools.chain(config.canvas_sizes, *config.test_canvas_sizes)
        )
        < MOST_ANCHORS
    ),
)
LEVELS = Check(
    "ascending levels from 2 to 6 without gaps, such as 2,3,4,5,6 or 4",
    lambda levels: (
        len(levels) > 0
        and 2 <= levels[0] <= levels[-1] <= 6
        and list(levels) == list(range(levels[0], levels[-1] + 1))
    ),
)
AS_MANY_FOR_EACH_LEVEL = Relation(
    lambda sizes, config: f"as many for each of the {len(config.anchor_levels)} --anchor_levels",
    lambda sizes, config: len(sizes) > 0 and len(sizes) % len(config.anchor_levels) == 0,
)
SURVIVES_ROUNDING = Relation(
    lambda rounding, config: "false, or --anchor_sizes whose sides are all above 1 pixel",
    lambda rounding, config: (
        not rounding
        or min(config.anchor_sizes)
        / math.sqrt(max(max(config.anchor_ratios), 1 / min(config.anchor_ratios)))
        > 1.0
    ),
)
AUGMENTATION_NAMES = Check(
    "names among " + ", ".join(AUGMENTATIONS) + ", each once",
    lambda names: set(names) <= set(AUGMENTATIONS) and len(set(names)) == len(names),
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Settings of reading, augmenting, resizing and anchor matching (`data/`)."""

    train_file_pattern: str = setting("", "Glob of the training TFRecord shards.")
    train_fraction: float = setting(
        1.0,
        "Share of the training images to use, chosen by their ids; a smaller share is part of a "
        "larger one.",
        POSITIVE_SHARE,
    )
    eval_file_pattern: str = setting("", "Glob of the evaluation TFRecord shards.")
    train_batch_size: int = setting(
        16, "Images per training step, summed over all replicas.", POSITIVE
    )
    steps_per_call: int = setting(
        1,
        "Training steps that one call of the devices takes, with images of one canvas: fewer calls "
        "on TPUs and for small networks, but they are logged and stopped only between calls.",
        POSITIVE,
    )
    eval_batch_size: int = setting(
        8, "Images per evaluation step, summed over all replicas.", POSITIVE
    )
    seed: int = setting(
        0,
        "Seed for all random numbers: image order, augmentation, sampling, initial weights.",
        NOT_NEGATIVE,
    )
    deterministic: bool = setting(
        False, "Make two runs of the same command bit-for-bit equal, at the cost of speed."
    )

    exif: str = predictive_setting(
        "apply",
        "Rotate images by their EXIF orientation (apply) or keep them as stored (ignore). Images "
        "whose sizes show that they were annotated as stored are never rotated.",
        one_of("apply", "ignore"),
    )
    canvases: tuple[str, ...] = predictive_setting(
        ("832x1344", "1344x832", "1024x1024"),
        "Static sizes (height x width, multiples of 32) that images are padded to. Each image "
        "uses the size that it fills best; all images of a batch have the same size.",
        each(CANVAS),
        FEW_ANCHORS,
    )
    short_side: int = predictive_setting(
        800, "Length that the shorter image side is resized to, in pixels.", POSITIVE
    )
    long_side: int = predictive_setting(
        1333, "Maximum length of the longer side after resizing, in pixels.", POSITIVE
    )
    train_short_side_min: int = setting(
        640,
        "In training, the short side is drawn at random between this and --short_side.",
        POSITIVE,
        at_most("short_side"),
    )
    scale_jitter_min: float = setting(
        1.0,
        "In training, the resize scale is multiplied by a random number between this and "
        "--scale_jitter_max.",
        between(0.01, 100.0),
        at_most("scale_jitter_max"),
    )
    scale_jitter_max: float = setting(
        1.0,
        "Upper end of the scale jitter. Images larger than the canvas are cropped at random.",
        between(0.01, 100.0),
    )
    horizontal_flip: float = setting(
        0.5, "Probability of mirroring left to right in training.", SHARE
    )
    vertical_flip: float = setting(
        0.0, "Probability of mirroring top to bottom in training.", SHARE
    )
    augmentations: tuple[str, ...] = setting(
        (),
        "Further augmentations of training images, applied in this order: a comma-separated list "
        "of " + ", ".join(AUGMENTATIONS) + ".",
        AUGMENTATION_NAMES,
    )
    test_scales: tuple[float, ...] = predictive_setting(
        (1.0,),
        "Test-time augmentation: each image is processed at these multiples of its size, and the "
        "detections are merged. Canvases and sides scale accordingly; the first scale decides "
        "which images form a batch.",
        each(between(0.1, 10.0)),
    )
    test_flip: bool = predictive_setting(
        False, "Test-time augmentation: each image is also processed mirrored left to right."
    )
    max_instances: int = setting(
        100, "Maximum number of ground-truth objects per image; the largest are kept.", POSITIVE
    )
    max_polygon_vertices: int = setting(
        512,
        "With --mask_target=polygon, the maximum number of vertices of an object's polygons; "
        "each polygon's first vertex counts twice.",
        POSITIVE,
    )
    mask_crop_size: int = setting(
        112,
        "Side length of the ground-truth masks, cropped to their boxes, that are sent to "
        "the device.",
        POSITIVE,
    )

    anchor_levels: tuple[int, ...] = predictive_setting(
        (2, 3, 4, 5, 6),
        "Levels that have anchors; level l has a cell every 2**l pixels. 2,3,4,5,6 are those of "
        "the feature pyramid, 4 is the single map of faster_rcnn_c4.",
        LEVELS,
    )
    anchor_sizes: tuple[float, ...] = predictive_setting(
        (32.0, 64.0, 128.0, 256.0, 512.0),
        "Square roots of the anchors' areas, pixels: as many for each level, level by level.",
        each(between(0.001, 1e6)),
        AS_MANY_FOR_EACH_LEVEL,
    )
    anchor_ratios: tuple[float, ...] = predictive_setting(
        (0.5, 1.0, 2.0),
        "Aspect ratios of the anchors (height / width).",
        each(between(0.001, 1000.0)),
    )
    anchor_rounding: bool = predictive_setting(
        False,
        "Round the anchors' corners to whole pixels, as torchvision does.",
        relation=SURVIVES_ROUNDING,
    )
    rpn_positive_iou: float = setting(
        0.7, "Anchors with at least this IoU are positive.", POSITIVE_SHARE
    )
    rpn_negative_iou: float = setting(
        0.3,
        "Anchors whose best IoU is below this are negative.",
        POSITIVE_SHARE,
        at_most("rpn_positive_iou"),
    )
    rpn_forced_match: str = setting(
        "best",
        "How each box's best anchors become positive: always, with the box that they overlap "
        "most as their target (best), or only from --rpn_negative_iou on, with the box itself as "
        "their target (reassign).",
        one_of("best", "reassign"),
    )
    rpn_samples_per_image: int = setting(
        256, "Anchors per image that the RPN loss is computed on.", POSITIVE
    )
    rpn_positive_fraction: float = setting(
        0.5,
        "Maximum fraction of positive anchors among them.",
        POSITIVE_SHARE,
        room_in("rpn_samples_per_image"),
    )
    rpn_negative_area: str = setting(
        "image",
        "Where the centres of negative anchors may lie: inside the image (image), inside the "
        "image with its sides rounded up to multiples of 32 (padded), or anywhere on the canvas "
        "(canvas).",
        one_of(*NEGATIVE_AREAS),
    )
    rpn_ignore_crowds: bool = setting(
        False,
        "Do not sample anchors as negatives if at least 70 % of their area lies inside a "
        "crowd box.",
    )

    proposals_file: str = path_setting(
        "Object proposals in COCO results format, for systems that do not make their own, of the "
        "training and the evaluation images: a file or a comma-separated list of files."
    )
    max_proposals: int = predictive_setting(
        2000, "Maximum number of proposals per image from --proposals_file.", POSITIVE
    )

    shuffle_megabytes: int = setting(
        64, "Memory for the shuffle buffer of serialised records, in MB.", POSITIVE
    )
    input_threads: int = setting(
        0, "Number of threads of the input pipeline; 0 lets tf.data choose.", NOT_NEGATIVE
    )
    data_service: str = setting(
        "",
        "Dispatcher of a tf.data service (grpc://HOST:PORT) whose workers read and prepare the "
        "images; if empty, this host does.",
        SERVICE,
        Relation(
            lambda address, config: (
                "an empty value with --deterministic, because a service's workers deliver images "
                "in no fixed order"
            ),
            lambda address, config: not (address and config.deterministic),
        ),
    )

    on_corrupt_record: str = setting(
        "error",
        "What to do about records that cannot be read, parsed or decoded: stop (error), or check "
        "all records before the start and leave those out (skip).",
        one_of("error", "skip"),
    )

    def __post_init__(self):
        check_settings(self)

    @property
    def canvas_sizes(self) -> tuple[tuple[int, int], ...]:
        """The canvases as (height, width) pairs."""
        return tuple(tuple(int(side) for side in canvas.split("x")) for canvas in self.canvases)

    @property
    def test_canvas_sizes(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The `canvas_sizes` at each of the test scales.

        Canvases that coincide at the first scale coincide at all of them, so images that form a
        batch at the first scale form one at every scale.
        """
        first = self.test_scales[0]
        base = tuple(_scale_canvas(canvas, first) for canvas in self.canvas_sizes)
        others = (scale / first for scale in self.test_scales[1:])
        return base, *(tuple(_scale_canvas(canvas, factor) for canvas in base) for factor in others)

    @property
    def anchors_per_cell(self) -> int:
        """Number of anchors at each cell of a level."""
        return len(self.anchor_sizes) // len(self.anchor_levels) * len(self.anchor_ratios)

    @property
    def pairs_images(self) -> bool:
        """Whether an augmentation may use a second image."""
        return not SCENES.keys().isdisjoint(self.augmentations)


class Wanted(Protocol):
    """What the network needs in the labels."""

    @property
    def include_mask(self) -> bool:
        """Whether it needs masks; they are included if the records have them."""

    @property
    def include_polygons(self) -> bool:
        """Whether it also needs polygons."""

    @property
    def has_rpn(self) -> bool:
        """Whether it makes its proposals; otherwise they are read from a file."""


class InputParams(Protocol):
    """The part of `trainer.config.Params` that the input reads."""

    @property
    def data(self) -> DataConfig:
        """The settings of the input."""

    @property
    def model(self) -> Wanted:
        """The settings of the network."""
