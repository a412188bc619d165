"""Box formats and overlap. `boxes` are cxcywh, `boxes_xyxy` two corners; any unit unless it says so."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def to_xyxy(boxes: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Turn (centre x, centre y, width, height) into (left, top, right, bottom)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def to_cxcywh(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Turn (left, top, right, bottom) into (centre x, centre y, width, height)."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape"]:
    """Return the area of boxes; a box whose corners are swapped has none."""
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def giou(a_xyxy: Float[Tensor, "*#shape 4"], b_xyxy: Float[Tensor, "*#shape 4"]) -> Float[Tensor, "*#shape"]:
    """Return the generalised IoU of boxes pair by pair, broadcast like any elementwise function; in (-1, 1]."""
    return iou_and_giou(a_xyxy, b_xyxy)[1]


def iou_and_giou(
    a_xyxy: Float[Tensor, "*#shape 4"], b_xyxy: Float[Tensor, "*#shape 4"]
) -> tuple[Float[Tensor, "*#shape"], Float[Tensor, "*#shape"]]:
    """Return IoU, in 0-1, and generalised IoU, in (-1, 1], pair by pair.

    GIoU = IoU - (hull - union) / hull, where the hull is the smallest box around both (Rezatofighi et al. 2019,
    algorithm 1). Scaling an axis of both boxes changes nothing, so normalised and pixel boxes give the same
    values. Two empty boxes at one point give 0 and -1.
    """
    # Axis by axis: tensors whose last dimension is 2 are slow to compute with, most of all to reduce.
    a_left, a_top, a_right, a_bottom = a_xyxy.unbind(-1)
    b_left, b_top, b_right, b_bottom = b_xyxy.unbind(-1)
    overlap_width = torch.minimum(a_right, b_right) - torch.maximum(a_left, b_left)
    overlap_height = torch.minimum(a_bottom, b_bottom) - torch.maximum(a_top, b_top)
    hull_width = torch.maximum(a_right, b_right) - torch.minimum(a_left, b_left)
    hull_height = torch.maximum(a_bottom, b_bottom) - torch.minimum(a_top, b_top)
    overlap = overlap_width.clamp(min=0) * overlap_height.clamp(min=0)
    union = area(a_xyxy) + area(b_xyxy) - overlap
    hull = hull_width * hull_height
    tiny = torch.finfo(union.dtype).tiny  # keeps 0 / 0 at 0
    iou = overlap / union.clamp(min=tiny)
    return iou, iou - (1 - union / hull.clamp(min=tiny))


def inverse_sigmoid(x: Float[Tensor, "*shape"], eps: float = 1e-5) -> Float[Tensor, "*shape"]:
    """Return what the sigmoid makes `x`, 0-1, of; `eps` keeps the ends finite, as Deformable DETR has it."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
