"""Converts the labels of training records to the network's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf


def relabel(input_fn: Callable, label_map: Mapping[int, int]) -> Callable:
    """Makes an input function whose training labels are the network's.

    Args:
        input_fn: an input function such as `data.input_fn.input_fn`.
        label_map: the network's label by the records' label; empty if they are equal. The
            background, also used as padding, stays 0.
    """
    if not label_map:
        return input_fn
    numbers = np.zeros(max(label_map) + 1, np.int32)
    numbers[list(label_map)] = list(label_map.values())

    def renumber(features: dict, labels: dict) -> tuple[dict, dict]:
        return features, {**labels, "gt_classes": tf.gather(numbers, labels["gt_classes"])}

    def relabelled(mode: str, *args) -> tf.data.Dataset:
        dataset = input_fn(mode, *args)
        return dataset.map(renumber) if mode == "train" else dataset

    return relabelled
