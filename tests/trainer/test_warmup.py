"""The warm-up request for TensorFlow Serving, against the classes of tensorflow-serving-api."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from trainer.warmup import _field, make_warmup_request


def test_fields_are_encoded_as_protocol_buffers_say():
    assert _field(1, b"ab") == b"\x0a\x02ab"
    # 300 is 0b10_0101100: the example of the format's specification.
    assert _field(2, bytes(300)) == b"\x12\xac\x02" + bytes(300)
    assert _field(100, b"") == b"\xa2\x06\x00"


def test_it_equals_a_request_of_the_serving_api():
    reason = "needs tensorflow-serving-api (make install-extras)"
    predict = pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason=reason)
    log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason=reason)
    parsed = log.PredictionLog.FromString(make_warmup_request(48, 32))
    (encoded,) = tf.make_ndarray(parsed.predict_log.request.inputs["images"])
    assert np.asarray(Image.open(io.BytesIO(encoded))).shape == (48, 32, 3)
    request = predict.PredictRequest()
    request.model_spec.signature_name = "serve_bytes"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto([encoded]))
    assert parsed == log.PredictionLog(predict_log=log.PredictLog(request=request))
