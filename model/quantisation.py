"""Which operations an export with 8-bit arithmetic computes in 8 bits.

Those of the backbone, the pyramid and the hidden layers of the heads. Everything that chooses,
moves or scores boxes stays in float32: 256 levels are too few for it.
"""

from __future__ import annotations

import re

from model.scopes import OUTPUTS

_PARTS = re.compile(r"(^|[/;])(backbone|fpn|[a-z]+_head)(_\d+)?/")
# Statistics of each image, which a fixed scale does not suit, and the heads' outputs.
_FLOAT = re.compile(rf"/(group_norm|{OUTPUTS})(_\d+)?/")


def is_quantised(name: str) -> bool:
    """Whether an operation or tensor with this name in the graph is computed in 8 bits.

    Args:
        name: such as `backbone_1/conv_norm_1/conv_3/Conv2D`; where a converter has fused several
            operations, their names with semicolons between them, none of which may have to stay in
            float32.
    """
    return bool(_PARTS.search(name)) and not _FLOAT.search(name)
