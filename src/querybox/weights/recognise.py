"""Which public layout a checkpoint has, told by its names."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from querybox.errors import CheckpointError
from querybox.weights.facebook import FACEBOOK
from querybox.weights.huggingface import HUGGINGFACE
from querybox.weights.layout import Layout
from querybox.weights.mmdet2 import MMDET2
from querybox.weights.mmdet3 import MMDET3

logger = logging.getLogger(__name__)

LAYOUTS = (FACEBOOK, MMDET2, MMDET3, HUGGINGFACE)
WRAPPERS = ("module.", "_orig_mod.", "detr.")
"""What stands before every name of a model that was wrapped: by DistributedDataParallel, by torch.compile, by a
segmentation model around the detector."""
SEGMENTATION = ("mask_head.", "bbox_attention.")
"""What a segmentation model has beside the detector."""


def detection_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the detector, without wrappers' prefixes and without the heads of a segmentation model."""
    bare = {}
    for name, tensor in state.items():
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        bare[name] = tensor
    left_out = [name for name in bare if name.startswith(SEGMENTATION)]
    if left_out:
        logger.warning("left out %d tensors of a segmentation head: only boxes are detected", len(left_out))
    return {name: tensor for name, tensor in bare.items() if name not in left_out}


def recognise(state: Mapping[str, Tensor]) -> Layout:
    """Return the layout of a whole checkpoint by what it calls the object queries.

    Raises:
        CheckpointError: No layout calls them so.
    """
    for layout in LAYOUTS:
        if layout.modules["queries.position"] in state:
            return layout
    expected = ", ".join(f"'{each.modules['queries.position']}' ({each.name})" for each in LAYOUTS)
    raise CheckpointError(
        f"no checkpoint of DETR: its object queries are missing, expected one of {expected}; "
        f"its {len(state)} tensors begin with {', '.join(list(state)[:3]) or 'nothing'}"
    )
