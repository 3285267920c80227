"""The grid of anchors: reference boxes at every cell of every pyramid level.

Level l has stride 2**l. Cell (row, column) has its anchors centred on (row * stride,
column * stride), one for each of the level's sizes and each aspect ratio: three in a pyramid, with
one size for each level (Lin et al., Feature Pyramid Networks, section 4.1), nine on the single map
of Faster R-CNN (Ren et al., NIPS 2015, section 3.1.1). Centres carry no offset and corners are not
rounded, as in Detectron2 and mmdetection; `rounded` gives torchvision's whole pixels.

Axes: A anchors, ordered by level, row, column, size and ratio, which is the order in which a
level's [rows, columns, sizes, ratios] outputs flatten.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data.config import DataConfig


@dataclasses.dataclass(frozen=True)
class AnchorGrid:
    """The anchors of one canvas.

    Attributes:
        height: canvas height in pixels.
        width: canvas width in pixels.
        min_level: finest pyramid level.
        max_level: coarsest pyramid level.
        sizes: square roots of the anchors' areas, pixels; as many for each level, level by level.
        ratios: anchor height over width.
        rounded: whether the corners of the anchor at the origin are rounded to whole pixels, halves
            to even ones.
    """

    height: int
    width: int
    min_level: int
    max_level: int
    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    rounded: bool = False

    def __post_init__(self):
        if self.height <= 0 or self.width <= 0:
            raise ValueError(f"canvas {self.height}x{self.width}: expected positive sides.")
        if not 0 <= self.min_level <= self.max_level:
            raise ValueError(f"levels {self.min_level} to {self.max_level}: expected ascending.")
        if not self.sizes or len(self.sizes) % len(self.strides) or min(self.sizes) <= 0:
            raise ValueError(
                f"sizes={self.sizes}: expected as many positive sizes for each level from "
                f"{self.min_level} to {self.max_level}."
            )
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"ratios={self.ratios}: expected at least one, all positive.")
        if not self.shapes.all():
            raise ValueError(
                f"sizes={self.sizes}, ratios={self.ratios}: expected larger anchors, because "
                "rounding leaves some of these without height or width."
            )

    @classmethod
    def from_config(cls, config: DataConfig, canvas: tuple[int, int]) -> AnchorGrid:
        """Makes the grid that `config` describes for a canvas of (height, width) pixels."""
        return cls(
            height=canvas[0],
            width=canvas[1],
            min_level=config.anchor_levels[0],
            max_level=config.anchor_levels[-1],
            sizes=tuple(config.anchor_sizes),
            ratios=tuple(config.anchor_ratios),
            rounded=config.anchor_rounding,
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighbouring cells of each level."""
        return tuple(2**level for level in range(self.min_level, self.max_level + 1))

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each level: the canvas divided by the stride, rounded up.

        Rounding up once equals halving and rounding up level by level, as the network does.
        """
        return tuple((-(-self.height // s), -(-self.width // s)) for s in self.strides)

    @property
    def per_cell(self) -> int:
        """Number of anchors at each cell."""
        return len(self.sizes) // len(self.strides) * len(self.ratios)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of anchors at each level."""
        return tuple(rows * columns * self.per_cell for rows, columns in self.level_shapes)

    @property
    def num_anchors(self) -> int:
        """Number of anchors on all levels, A."""
        return sum(self.level_sizes)

    @property
    def shapes(self) -> np.ndarray:
        """(height, width) of a cell's anchors in pixels: float64 [levels, per_cell, 2]."""
        roots = np.sqrt(np.asarray(self.ratios, np.float64))
        sizes = np.asarray(self.sizes, np.float64)[:, np.newaxis]
        shapes = np.stack([sizes * roots, sizes / roots], axis=-1)
        shapes = shapes.reshape(len(self.strides), self.per_cell, 2)
        # Opposite corners round alike, so the centre stays.
        return 2.0 * np.round(shapes / 2.0) if self.rounded else shapes

    def boxes(self) -> np.ndarray:
        """All anchors as boxes, float32 [A, 4]; those near the border extend beyond the canvas."""
        levels = zip(self.strides, self.level_shapes, self.shapes, strict=True)
        return np.concatenate([_level_boxes(*level) for level in levels]).astype(np.float32)


def _level_boxes(stride: int, grid_shape: tuple[int, int], shapes: np.ndarray) -> np.ndarray:
    """Anchors of one level, float64 [rows * columns * N, 4]; `shapes` is [N, 2]."""
    cells = np.stack(np.indices(grid_shape), axis=-1)[:, :, np.newaxis, :]
    centres = np.float64(stride) * cells
    corners = np.concatenate([centres - shapes / 2, centres + shapes / 2], axis=-1)
    return corners.reshape(-1, 4)
