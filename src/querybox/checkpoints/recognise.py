"""Which kind of detector a checkpoint holds, and in which public layout, told by its names."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from querybox.errors import CheckpointError
from querybox.models import KINDS, Recipe
from querybox.models.layouts.layout import Layout

logger = logging.getLogger(__name__)

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


def recognise(state: Mapping[str, Tensor]) -> tuple[type[Recipe], Layout]:
    """Return the kind and the layout of a whole checkpoint by a tensor that all of this kind have.

    Raises:
        CheckpointError: There is none.
    """
    # A relative before its parent, whose marks it has as well.
    known = [(kind, layout) for kind in reversed(KINDS.values()) for layout in kind.layouts.values()]
    for kind, layout in known:
        if any(name.startswith(layout.modules[kind.mark]) for name in state):
            return kind, layout
    expected = ", ".join(f"'{layout.modules[kind.mark]}' ({layout.name})" for kind, layout in known)
    raise CheckpointError(
        f"no checkpoint of DETR or a relative: what tells them apart is missing, one of {expected}; "
        f"its {len(state)} tensors begin with {', '.join(list(state)[:3]) or 'nothing'}"
    )
