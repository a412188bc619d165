"""Recognise the kind of detector and the public layout of a checkpoint by its tensor names."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from querybox.errors import CheckpointError
from querybox.models import KINDS, Recipe
from querybox.models.layouts.layout import Layout, pattern

logger = logging.getLogger(__name__)

WRAPPERS = ("module.", "_orig_mod.", "detr.")
"""Prefixes of wrapped models: by DistributedDataParallel, by torch.compile, by a segmentation model around the
detector."""
SEGMENTATION = ("mask_head.", "bbox_attention.")
"""Prefixes of the mask heads of a segmentation model."""


def detection_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the detector, without wrappers' prefixes and without the heads of a segmentation model."""
    bare = {}
    for name, tensor in state.items():
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        bare[name] = tensor
    masks = [name for name in bare if name.startswith(SEGMENTATION)]
    if masks:
        logger.warning("dropped %d tensors of a segmentation head: only boxes are detected", len(masks))
    return {name: tensor for name, tensor in bare.items() if name not in masks}


def recognise(state: Mapping[str, Tensor]) -> tuple[type[Recipe], Layout]:
    """Return the kind and the layout of a checkpoint, by a tensor that only this kind has.

    Raises:
        CheckpointError: It is none of the known ones.
    """
    # Relatives come before their parents, whose marks they have as well.
    known = [(kind, layout) for kind in reversed(KINDS.values()) for layout in kind.layouts.values()]
    for kind, layout in known:
        if any(map(pattern(layout.modules[kind.identifying_tensor]).match, state)):
            return kind, layout
    expected = ", ".join(
        f"'{layout.modules[kind.identifying_tensor]}' ({layout.name})" for kind, layout in known
    )
    raise CheckpointError(
        f"not a checkpoint of DETR or a relative: expected one of {expected}; got {len(state)} tensors, the first are "
        f"{', '.join(list(state)[:3]) or 'none'}"
    )
