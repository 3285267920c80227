"""A trained network that is called on images.

Axes: B images of a batch, N detections of an image, h w rows and columns of an image, H W its
canvas, M side of a mask.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import tensorflow as tf

from data import files
from data.errors import UserError
from data.examples import lay_out
from data.photographs import read_photograph
from data.scenes import Tensors
from model.detector import Detector
from model.paste import paste_mask, paste_rle
from model.systems import build_network
from trainer.ahead import ahead
from trainer.calibration_file import calibrate_network
from trainer.categories import Category, load_categories
from trainer.checkpoint_files import find_checkpoint, load_network
from trainer.coco_results import boxes_in_original, scores_of, to_coco_box
from trainer.config import Params
from trainer.given_masks import prepare_masks, require_classes
from trainer.named_settings import choose_settings
from trainer.overlays import Instance, draw_instances
from trainer.run_record import has_checkpoint, load_record, require_own_proposals
from trainer.runtimes import Opened, is_export, open_export

_PER_DETECTION = "detection_classes", "box_scores", "mask_ious", "mask_scores", "detection_masks"
Photograph = np.ndarray | str | os.PathLike[str]
Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class Detections:
    """The detections in one image, best first: by `mask_scores`, else by `box_scores`.

    Attributes:
        height, width: size of the image, pixels.
        boxes: float32 [N, 4], y1, x1, y2, x2 in pixels of the image.
        classes: int32 [N], labels from 1 on.
        names: N class names.
        category_ids: N ids of the classes in the COCO file that the network was trained on.
        box_scores: float32 [N], probability of the class; all scores may be calibrated.
        mask_ious: float32 [N], expected IoU of each mask, 0 to 1; None without a MaskIoU head.
        mask_scores: float32 [N], box_score × mask_iou; None without a mask head.
        probabilities: float32 [N, M, M], each mask over its box; None without a mask head.
        mask_paste: the rule of `model.paste` that makes masks from them.
    """

    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    names: list[str]
    category_ids: list[int]
    box_scores: np.ndarray
    mask_ious: np.ndarray | None = None
    mask_scores: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    mask_paste: str = "exact"

    def __len__(self) -> int:
        return len(self.classes)

    @functools.cached_property
    def masks(self) -> np.ndarray | None:
        """The masks, bool [N, h, w], made on first use; None without a mask head."""
        if self.probabilities is None:
            return None
        masks = np.zeros([len(self), self.height, self.width], bool)
        for index, mask in enumerate(masks):
            mask[:] = self._paste(index)
        return masks

    def to_coco(self, image_id: int = 0, file_name: str = "") -> list[dict]:
        """Returns entries in COCO results format, with `bbox` and `segmentation` (RLE).

        `score` is the mask score if there is one, else the box score; the single scores are
        included under their own names. Without masks, `segmentation` is absent.
        """
        image: dict[str, Any] = {"image_id": image_id}
        if file_name:
            image["file_name"] = file_name
        size = self.height, self.width
        entries = []
        for index, box in enumerate(self.boxes):
            scores = self._scores(index)
            entry = {
                **image,
                "category_id": self.category_ids[index],
                "bbox": to_coco_box(box, *size),
                "score": scores.get("mask_score", scores["box_score"]),
                **scores,
            }
            if self.probabilities is not None:
                mask = self.probabilities[index]
                entry["segmentation"] = paste_rle(mask, box, *size, rule=self.mask_paste)
            entries.append(entry)
        return entries

    def draw(self, image: np.ndarray, min_score: float = 0.3) -> np.ndarray:
        """Draws the detections with at least this box score on the image: uint8 [h, w, 3]."""
        instances = [
            Instance(
                tuple(box),
                " ".join([self.names[index], *(f"{s:.2f}" for s in self._scores(index).values())]),
                self._paste(index),
            )
            for index, box in enumerate(self.boxes)
            if self.box_scores[index] >= min_score
        ]
        return draw_instances(image, instances, enlargement=1)

    def _paste(self, index: int) -> np.ndarray | None:
        """Pastes one mask: uint8 [h, w]."""
        if self.probabilities is None:
            return None
        size, rule = (self.height, self.width), self.mask_paste
        return paste_mask(self.probabilities[index], self.boxes[index], *size, rule=rule)

    def _scores(self, index: int) -> dict[str, float]:
        return scores_of(vars(self), index)


class Predictor:
    """Detects the objects in images. It may be called from several threads at once.

    Args:
        params: the network's settings.
        detect: maps the features of a batch with one canvas to detections, with the names of
            `model.detector.Detector.detect`.
        categories: {"label", "id", "name"} of each class.
        rate: judges given masks as `model.detector.Detector.rate` does; None if the model cannot.
        batch_size: number of images with the same canvas that are processed together.
    """

    def __init__(
        self,
        params: Params,
        detect: Callable[[Tensors], Mapping[str, tf.Tensor | np.ndarray]],
        categories: Sequence[Mapping],
        rate: Callable[..., tf.Tensor] | None = None,
        *,
        batch_size: int = 1,
    ):
        self.params = params
        self.categories = tuple(categories)
        self.names = {category["label"]: str(category["name"]) for category in categories}
        self._ids = {category["label"]: category["id"] for category in categories}
        self._batch_size = batch_size
        pixels = tf.TensorSpec([None, None, 3], tf.uint8)
        self._lay_out = tf.function(
            functools.partial(lay_out, config=params.data),
            input_signature=[pixels],
            autograph=False,
        )
        self._detect, self._rate = detect, rate

    @overload  # A str is also a sequence of str; here it is a path.
    def __call__(self, images: Photograph) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Sequence[Photograph]) -> list[Detections]: ...

    def __call__(self, images: Photograph | Sequence[Photograph]) -> Detections | list[Detections]:
        """Detects the objects in an image, or in each of a list of images.

        Args:
            images: a uint8 array [h, w, 3] (RGB), a path of a JPEG or PNG file, or a list of them.
                An EXIF orientation is applied to files as in training.

        Raises:
            ValueError: an array has another dtype or shape.
            UserError: a file cannot be read as an image.
        """
        if isinstance(images, Sequence) and not isinstance(images, str):
            found = dict(self.stream(enumerate(images)))
            return [found[index] for index in range(len(images))]
        return self._detect_in([self._laid_out(images)])[0]

    def stream(self, images: Iterable[tuple[Key, Photograph]]) -> Iterator[tuple[Key, Detections]]:
        """Detects the objects in many images, each of which has a key to identify it.

        One thread reads and resizes the images, and another runs the network while earlier
        detections are in use.

        Yields:
            Each key with its detections. Images with the same canvas keep their order; those that
            are too few for a full batch come last.

        Raises:
            As `__call__`, in place of the image's detections.
        """
        laid_out = ahead(
            ((key, self._laid_out(image)) for key, image in images), 2 * self._batch_size
        )
        batches = _batch_by_canvas(laid_out, self._batch_size)
        results = (zip(keys, self._detect_in(features), strict=True) for keys, features in batches)
        for found in ahead(results):
            yield from found

    def rate(
        self, image: Photograph, masks: np.ndarray | Sequence[np.ndarray], classes: Sequence[int]
    ) -> np.ndarray:
        """Predicts how well masks of any origin outline their objects.

        Args:
            image: as for `__call__`.
            masks: N arrays [h, w] of the image's size, not 0 where the mask is.
            classes: N labels, from 1 on; `names` lists them.

        Returns:
            float32 [N], the expected IoU of each mask with its object, 0 for an empty mask.

        Raises:
            UserError: the model has no MaskIoU head, or is an export; or as `__call__`.
            ValueError: a mask has another size than the image, or a class does not exist.
        """
        if self._rate is None:
            raise UserError(
                "This model cannot rate masks: that takes the model_dir of a system with a MaskIoU "
                "head, such as mask_scoring_rcnn."
            )
        features = self._laid_out(image)
        height, width = (int(side) for side in features["image_info"][3:])
        require_classes(classes, self.names)
        if not len(masks):
            return np.zeros([0], np.float32)
        given = prepare_masks(masks, classes, (height, width), self.params.model.mask_size)
        valid_height, valid_width = features["image_info"][:2].numpy()
        padded = given.padded()
        rated = self._rate(
            {name: value[None] for name, value in features.items()},
            padded.boxes[None] * np.array([valid_height / height, valid_width / width] * 2, "f"),
            padded.classes[None],
            padded.cells[None],
        )
        empty = (given.boxes[:, 2] == 0) | (given.boxes[:, 3] == 0)
        return np.where(empty, np.float32(0), np.asarray(rated)[0, : len(masks)])

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """Reads the pixels of a file as in training: uint8 [h, w, 3], rotated by EXIF orientation.

        Raises:
            UserError: the file is missing, or neither JPEG nor PNG, or broken.
        """
        return read_photograph(path, self.params.data.exif)

    def _laid_out(self, image: Photograph) -> Tensors:
        if isinstance(image, str | os.PathLike):
            image = self.read(image)
        return self._lay_out(_check_pixels(image))

    def _detect_in(self, batch: Sequence[Tensors]) -> list[Detections]:
        """Detects the objects in each image of a batch with one canvas."""
        features = {name: tf.stack([one[name] for one in batch]) for name in batch[0]}
        outputs = {name: np.asarray(value) for name, value in self._detect(features).items()}
        outputs["image_info"] = features["image_info"].numpy()
        return [
            self._gather({name: value[row] for name, value in outputs.items()})
            for row in range(len(batch))
        ]

    def _gather(self, prediction: Mapping[str, np.ndarray]) -> Detections:
        count = int(prediction["num_detections"])
        scores = prediction.get("mask_scores", prediction["box_scores"])[:count]
        order = np.argsort(-scores, kind="stable")
        found = {name: prediction[name][order] for name in _PER_DETECTION if name in prediction}
        classes = found["detection_classes"]
        height, width = (int(side) for side in prediction["image_info"][3:])
        return Detections(
            height=height,
            width=width,
            boxes=boxes_in_original(prediction)[order].astype(np.float32),
            classes=classes,
            names=[self.names.get(int(label), str(label)) for label in classes],
            category_ids=[self._ids.get(int(label), int(label)) for label in classes],
            box_scores=found["box_scores"],
            mask_ious=found.get("mask_ious"),
            mask_scores=found.get("mask_scores"),
            probabilities=found.get("detection_masks"),
            mask_paste=self.params.model.mask_paste,
        )


def load(
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 1,
    checkpoint: str | os.PathLike[str] = "",
    **settings: object,
) -> Predictor:
    """Opens a trained model.

    Args:
        folder: a model_dir, or the folder `best` in one; a SavedModel or OpenVINO model of
            --mode=export; or a file of `tools/export_tflite.py`.
        batch_size: see `Predictor`.
        checkpoint: a checkpoint in the folder; by default the latest.
        settings: settings that replace the recorded ones, by the names of their flags, such as
            `score_threshold=0.5` or `precision="float32"`. Those of an exported model are fixed.

    Raises:
        UserError: the folder does not contain a trained model, or settings are given for an
            exported one.
        TypeError: there is no setting with such a name, or its value has a wrong type.
        ValueError: a setting has an invalid value.
    """
    folder = files.expand(folder)
    # StableHLO is for other programs.
    if is_export(folder) and not folder.endswith(".stablehlo"):
        if settings or checkpoint:
            raise UserError(
                f"{folder} is an exported model, whose settings and weights are fixed: open its "
                f"model_dir instead, or export it again with other settings."
            )
        # Exports process one image at a time.
        return Predictor(*open_export(folder))
    return Predictor(*open_checkpoint(folder, checkpoint, settings), batch_size=batch_size)


class Trained(NamedTuple):
    """A network with trained weights."""

    network: Detector
    params: Params
    categories: tuple[Category, ...]
    checkpoint: str


def open_checkpoint(
    folder: str, checkpoint: str | os.PathLike[str] = "", settings: Mapping[str, object] = {}
) -> Opened:
    """Opens the weights in a model_dir, with the arguments of `load`."""
    network, params, categories, path = load_trained(folder, checkpoint, settings)
    calibrate_network(network, path, params)
    # One trace for each canvas and number of images: one, or a full batch.
    trace = functools.partial(tf.function, autograph=False)
    rate = trace(network.rate) if params.model.include_maskiou else None
    return Opened(params, trace(network.detect), categories, rate)


def load_trained(
    folder: str, checkpoint: str | os.PathLike[str] = "", settings: Mapping[str, object] = {}
) -> Trained:
    """Loads the network of a model_dir, without a calibration, with the arguments of `load`."""
    home = os.path.dirname(folder) if os.path.basename(folder) == "best" else folder
    recorded = load_record(home)
    if not recorded or not (checkpoint or has_checkpoint(folder)):
        raise UserError(
            f"There is no trained model in {folder}: give the --model_dir of a training."
        )
    params = choose_settings(settings, recorded | {"jit_compile": False})
    require_own_proposals(params, home)
    network = build_network(params)
    path = find_checkpoint(checkpoint or folder)
    load_network(network, path)
    return Trained(network, params, load_categories(home), path)


def _batch_by_canvas(
    pictures: Iterable[tuple[Key, Tensors]], size: int
) -> Iterator[tuple[list[Key], list[Tensors]]]:
    """Yields batches of one canvas as they become full, and finally the rest one by one."""
    waiting: dict[tuple, list[tuple[Key, Tensors]]] = collections.defaultdict(list)
    for key, features in pictures:
        canvas = tuple(features["image"].shape[:2])
        waiting[canvas].append((key, features))
        if len(waiting[canvas]) == size:
            keys, batch = zip(*waiting.pop(canvas), strict=True)
            yield list(keys), list(batch)
    for left in waiting.values():
        for key, features in left:
            yield [key], [features]


def _check_pixels(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"an image must be a uint8 array [height, width, 3] in RGB, not {pixels.dtype} "
            f"{list(pixels.shape)}."
        )
    return pixels
