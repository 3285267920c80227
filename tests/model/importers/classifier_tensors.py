"""Tensors for torchvision's classifiers, drawn at random by name and shape."""

import math

import numpy as np


def draw_tensors(shapes):
    """Draws kernels, biases and batch norms by their shapes, in this order; float32."""
    rng = np.random.default_rng(0)
    return {name: np.float32(_draw(rng, name, shape)) for name, shape in shapes.items()}


def _draw(rng, name, shape):
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape)
    if len(shape) > 1:
        return rng.standard_normal(shape, np.float32) * math.sqrt(2 / math.prod(shape[1:]))
    if name.endswith(("bias", "running_mean")):
        return 0.1 * rng.standard_normal(shape)
    return rng.uniform(0.5, 1.0, shape)


def draw_pixels(height, width):
    """Draws the normalised pixels of one image, [1, height, width, 3]."""
    return np.random.default_rng(1).standard_normal((1, height, width, 3), np.float32)
