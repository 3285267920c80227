"""Makes a network do a fixed amount of work, independent of its random weights.

Axes: B images, G objects of an image, N RoIs.
"""

from __future__ import annotations

import numpy as np

from tools.benchmarks.synthetic import LOGIT_DEVIATION, SCORED_CLASSES, near_objects

_PROPOSALS_NEAR_OBJECTS = 200


def pin_classes(network) -> None:
    """Gives three classes per RoI high scores, roughly as in a trained network.

    Random weights detect nothing or everything; with three scores above the threshold per RoI, NMS
    and the mask branch do realistic work.

    Args:
        network: its box head's logits are replaced and its deltas damped.
    """
    import tensorflow as tf

    classify = network.box_head.call

    def name_three_classes(features):
        outputs = classify(features)
        count, classes = tf.shape(outputs.class_logits)[0], outputs.class_logits.shape[1]
        shape, seed = [count, SCORED_CLASSES], [1, 2]
        chosen = tf.random.stateless_uniform(shape, seed, 1, classes, tf.int32)
        heights = tf.random.stateless_uniform(shape, seed, 4.0, 6.0)
        raised = tf.reduce_max(tf.one_hot(chosen, classes) * heights[..., None], axis=1)
        return outputs._replace(
            class_logits=outputs.class_logits * 0.0 + raised - 4.0,
            box_deltas=outputs.box_deltas * 0.01,
        )

    network.box_head.call = name_three_classes


def spread_logits(network, features: dict) -> None:
    """Scales the classifier so that random weights give scores high enough for detections.

    Unlike `pin_classes` it changes weights only, so the network can be saved and exported.

    Args:
        network: its box head's classifier is scaled.
        features: of a batch, as for `Detector.detect`.
    """
    import tensorflow as tf

    deviations = []
    classify = network.box_head.call

    def measure(pooled):
        outputs = classify(pooled)
        deviations.append(tf.math.reduce_std(outputs.class_logits))
        return outputs

    network.box_head.call = measure
    network.detect(features)
    network.box_head.call = classify
    kernel = network.box_head.classes.kernel
    kernel.assign(kernel * (LOGIT_DEVIATION / deviations[0]))


def pin_positives(network, gt_boxes):
    """Makes a network propose boxes near the objects, so that it has the maximum of positives.

    Args:
        network: its `propose` is replaced.
        gt_boxes: float32 [B, G, 4] of the only batch, zeros are padding.
    """
    import tensorflow as tf

    boxes, count = np.asarray(gt_boxes), _PROPOSALS_NEAR_OBJECTS
    near = np.zeros([len(boxes), count, 4], np.float32)
    for image, objects in zip(near, boxes, strict=True):
        objects = objects[objects[:, 2] > objects[:, 0]]
        if len(objects):
            image[:] = near_objects(objects, count)
    propose = network.propose

    def propose_near_objects(*args, **kwargs):
        view, outputs, proposals = propose(*args, **kwargs)
        pinned = tf.concat([near, proposals.boxes[:, count:]], axis=1)
        valid = tf.concat([tf.ones(near.shape[:2], tf.bool), proposals.valid[:, count:]], axis=1)
        return view, outputs, proposals._replace(boxes=pinned, valid=valid)

    network.propose = propose_near_objects
