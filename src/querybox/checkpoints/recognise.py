"""Which public layout a checkpoint has, told by its names."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from querybox.errors import CheckpointError
from querybox.models.layouts.facebook import FACEBOOK
from querybox.models.layouts.fundamentalvision import FUNDAMENTALVISION
from querybox.models.layouts.huggingface import HUGGINGFACE, HUGGINGFACE_DEFORMABLE
from querybox.models.layouts.idea import IDEA
from querybox.models.layouts.layout import Layout
from querybox.models.layouts.mmdet2 import MMDET2
from querybox.models.layouts.mmdet3 import MMDET3, MMDET3_DEFORMABLE, MMDET3_DINO

logger = logging.getLogger(__name__)

LAYOUTS = (
    *(IDEA, MMDET3_DINO),
    *(FUNDAMENTALVISION, MMDET3_DEFORMABLE, HUGGINGFACE_DEFORMABLE),
    *(FACEBOOK, MMDET2, MMDET3, HUGGINGFACE),
)
"""All, a relative before its parent, whose marks it has as well."""
MARKS = {"dino": "decoder.position.layers.0", "deformable_detr": "encoder.level", "detr": "queries.position"}
"""What tells a kind from its parent."""
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
    """Return the layout of a whole checkpoint by a tensor that DETR or the relative always has.

    Raises:
        CheckpointError: There is none.
    """
    marks = [(layout, layout.modules[MARKS[layout.kind]]) for layout in LAYOUTS]
    for layout, mark in marks:
        if any(name.startswith(mark) for name in state):
            return layout
    expected = ", ".join(f"'{mark}' ({layout.name})" for layout, mark in marks)
    raise CheckpointError(
        f"no checkpoint of DETR or a relative: what tells them apart is missing, one of {expected}; "
        f"its {len(state)} tensors begin with {', '.join(list(state)[:3]) or 'nothing'}"
    )
