"""A trained network as the signatures of an exported model, which needs none of this code to run.

Axes: B images, D detections, M side of a mask, H W canvas, h w image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from data.decoding import decode_file
from data.examples import lay_out
from data.scenes import Tensors
from model.detector import Detector
from model.paste_ops import encode_masks, paste_masks
from model.static import Static
from trainer.config import Params
from trainer.exported import NAMES


class Serving(tf.Module):
    """Signatures over a network.

    All give `num_detections` int32 [B] and, for D slots, the rest of which is empty: `boxes`
    float32 [B, D, 4] (y1, x1, y2, x2), `classes` int32 [B, D], `box_scores`, and as far as the
    network has such heads `mask_ious`, `mask_scores` and `masks` float32 [B, D, M, M],
    probabilities over the boxes. Slots are in order of falling box score, before
    calibration.

    - `serving_default`: `image` uint8 [1, H, W, 3], an image that fills the canvas. Only
      operations that LiteRT and OpenVINO have as well.
    - `serve_canvas`: an image on a canvas, `image` and `image_info` float32 [1, 5], see
      `data.examples.lay_out`.
    - `serve_bytes`: `images` string [B], JPEG or PNG files of any size, turned as their EXIF
      orientation says. Boxes are in pixels of these images; further outputs are `names` string
      [B, D] and `sizes` int32 [B, 2], their h and w.
    - `serve_examples`: the same of `examples` string [B], serialised tf.train.Example messages with
      the file under `image/encoded`.
    - `serve_rle`: as `serve_bytes`, and `rle_counts` string [B, D], COCO's compressed run lengths.
    - `serve_masks`: as `serve_bytes`, of one file, and `pasted_masks` bool [1, D, h, w].

    Args:
        params: the settings, with one canvas.
        network: with its weights.
        categories: {"label", "id", "name"} of each class.
    """

    def __init__(self, params: Params, network: Detector, categories: Sequence[Mapping]):
        super().__init__()
        # Converters find weights that a module holds itself, and not those in a Keras layer.
        self.weights = [variable.value for variable in network.variables]
        self._detect = network.detect
        self._data, self._paste_rule = params.data, params.model.mask_paste
        names = {category["label"]: str(category["name"]) for category in categories}
        self._names = [names.get(label, str(label)) for label in range(params.model.num_classes)]
        self._names[0] = ""
        self._has_masks = params.model.include_mask

    def signature(self, name: str) -> Callable:
        """The concrete function of one of the signatures."""
        serve, *specs = self._signatures[name]
        return tf.function(serve, autograph=False).get_concrete_function(*specs)

    def signatures(self) -> dict[str, Callable]:
        """The concrete functions of all, by their names."""
        return {name: self.signature(name) for name in self._signatures}

    @property
    def _signatures(self) -> dict[str, tuple]:
        (canvas,) = self._data.canvas_sizes
        image = tf.TensorSpec([1, *canvas, 3], tf.uint8, "image")
        info = tf.TensorSpec([1, 5], tf.float32, "image_info")
        files, one = (tf.TensorSpec([count], tf.string, "images") for count in (None, 1))
        examples = tf.TensorSpec([None], tf.string, "examples")
        pasted = {
            "serve_rle": (self._serve_rle, files),
            "serve_masks": (self._serve_masks, one),
        }
        return {
            "serving_default": (self._serve_filled, image),
            "serve_canvas": (self._serve_canvas, image, info),
            "serve_bytes": (self._serve_files, files),
            "serve_examples": (self._serve_examples, examples),
        } | (pasted if self._has_masks else {})

    def _serve_filled(self, image: tf.Tensor) -> Tensors:
        return serve_filled(self._detect, image, Static.PORTABLE)

    def _serve_canvas(self, image: tf.Tensor, image_info: tf.Tensor) -> Tensors:
        return _rename(self._detect({"image": image, "image_info": image_info}))

    def _serve_files(self, images: tf.Tensor) -> Tensors:
        return self._for_each(images, lambda found, size: {})

    def _serve_examples(self, examples: tf.Tensor) -> Tensors:
        spec = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
        return self._serve_files(tf.io.parse_example(examples, spec)["image/encoded"])

    def _serve_rle(self, images: tf.Tensor) -> Tensors:
        return self._for_each(
            images, lambda *found: {"rle_counts": encode_masks(self._paste(*found))}
        )

    def _serve_masks(self, images: tf.Tensor) -> Tensors:
        found = self._find(images[0], lambda *found: {"pasted_masks": self._paste(*found)})
        return {name: value[None] for name, value in found.items()}

    def _paste(self, found: Tensors, size: tf.Tensor) -> tf.Tensor:
        return paste_masks(found["masks"], found["boxes"], size, self._paste_rule)

    def _for_each(self, images: tf.Tensor, add: Callable) -> Tensors:
        """Finds in each file of a batch, one after another, because each image has its own size."""
        find = tf.function(lambda file: self._find(file, add), autograph=False)
        find_one = find.get_concrete_function(tf.TensorSpec([], tf.string))
        signature = {
            name: tf.TensorSpec(value.shape, value.dtype)
            for name, value in find_one.structured_outputs.items()
        }
        return tf.map_fn(find_one, images, fn_output_signature=signature)

    def _find(self, file: tf.Tensor, add: Callable[[Tensors, tf.Tensor], Tensors]) -> Tensors:
        """Detects in a file, in pixels of its image, and adds what `add` makes of it."""
        features = lay_out(decode_file(file, self._data.exif), self._data)
        info = features["image_info"]
        outputs = self._detect({name: value[None] for name, value in features.items()})
        found = {name: value[0] for name, value in _rename(outputs).items()}
        size = tf.cast(info[3:], tf.int32)
        found["boxes"] = found["boxes"] * tf.tile(info[3:] / info[:2], [2])
        found["names"] = tf.gather(tf.constant(self._names), found["classes"])
        found["sizes"] = size
        return found | add(found, size)


def serve_filled(detect: Callable[..., Tensors], image: tf.Tensor, static: Static) -> Tensors:
    """Detects in an image that fills its canvas.

    Args:
        detect: `model.detector.Detector.detect`.
        image: uint8 [1, H, W, 3].
        static: see `model.static.Static`.
    """
    height, width = (float(side) for side in image.shape[1:3])
    image_info = tf.constant([[height, width, 1.0, height, width]])
    return _rename(detect({"image": image, "image_info": image_info}, static=static))


def _rename(outputs: Tensors) -> Tensors:
    return {name: outputs[key] for key, name in NAMES.items() if key in outputs}
