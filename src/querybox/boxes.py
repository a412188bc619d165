"""Box formats and IoU. `boxes` are cxcywh, `boxes_xyxy` are corners, in any unit unless stated otherwise."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def to_xyxy(boxes: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Convert (centre x, centre y, width, height) to (left, top, right, bottom)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def to_cxcywh(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """Convert (left, top, right, bottom) to (centre x, centre y, width, height)."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area(boxes_xyxy: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape"]:
    """Return the area of boxes; 0 if the corners are swapped."""
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def giou(a_xyxy: Float[Tensor, "*#shape 4"], b_xyxy: Float[Tensor, "*#shape 4"]) -> Float[Tensor, "*#shape"]:
    """Return the elementwise generalised IoU of boxes, from -1 to 1, with broadcasting."""
    return iou_and_giou(a_xyxy, b_xyxy)[1]


def iou_and_giou(
    a_xyxy: Float[Tensor, "*#shape 4"], b_xyxy: Float[Tensor, "*#shape 4"]
) -> tuple[Float[Tensor, "*#shape"], Float[Tensor, "*#shape"]]:
    """Return the elementwise IoU, in 0-1, and generalised IoU, from -1 to 1, with broadcasting.

    GIoU = IoU - (hull - union) / hull, where the hull is the smallest box that encloses both (Rezatofighi et al. 2019,
    algorithm 1). Both are invariant to scaling an axis of both boxes, so normalised and pixel boxes give the same
    values. Two empty boxes at the same point give 0 and -1.
    """
    # Per axis, because operations on tensors whose last dimension is 2 are slow, reductions most of all.
    a_left, a_top, a_right, a_bottom = a_xyxy.unbind(-1)
    b_left, b_top, b_right, b_bottom = b_xyxy.unbind(-1)
    overlap_width = torch.minimum(a_right, b_right) - torch.maximum(a_left, b_left)
    overlap_height = torch.minimum(a_bottom, b_bottom) - torch.maximum(a_top, b_top)
    hull_width = torch.maximum(a_right, b_right) - torch.minimum(a_left, b_left)
    hull_height = torch.maximum(a_bottom, b_bottom) - torch.minimum(a_top, b_top)
    intersection = overlap_width.clamp(min=0) * overlap_height.clamp(min=0)
    union = area(a_xyxy) + area(b_xyxy) - intersection
    hull = hull_width * hull_height
    tiny = torch.finfo(union.dtype).tiny  # makes 0 / 0 zero
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (1 - union / hull.clamp(min=tiny))


def inverse_sigmoid(x: Float[Tensor, "*shape"], eps: float = 1e-5) -> Float[Tensor, "*shape"]:
    """Inverse sigmoid (logit) of `x` in 0-1; `eps` keeps 0 and 1 finite, as in Deformable DETR."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
