"""The request that TensorFlow Serving runs when it loads a model, before it accepts others.

The first run of a network takes much longer than the following ones. TensorFlow Serving looks for
serialized `PredictionLog` messages in a TFRecord file. The package that defines these messages,
tensorflow-serving-api, is not needed here: a message consists of a few nested fields.
"""

from __future__ import annotations

import tensorflow as tf

FILE = "tf_serving_warmup_requests"


def make_warmup_request(height: int, width: int) -> bytes:
    """A serialized `PredictionLog` that calls `serve_bytes` with one gray JPEG of this size.

    Source: tensorflow_serving/apis/{prediction_log,predict,model}.proto.
    """
    image = tf.io.encode_jpeg(tf.fill([height, width, 3], tf.constant(128, tf.uint8)))
    images = tf.make_tensor_proto([image.numpy()]).SerializeToString()
    model_spec = _field(3, b"serve_bytes")  # signature_name
    inputs = _field(1, b"images") + _field(2, images)  # key and value of a map
    request = _field(1, model_spec) + _field(2, inputs)
    predict_log = _field(1, request)
    return _field(6, predict_log)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in a protocol buffer message: its key, its length, and the content."""
    length_delimited = 2
    return _varint(number << 3 | length_delimited) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits in each byte, lowest first; the high bit says that another byte follows."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
