"""Postprocessing of predictions: scores, labels, and boxes in pixels of the original image."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querybox.boxes import to_xyxy
from querybox.structures import Predictions, at_least_float32


def postprocess(
    predictions: Predictions,
    sizes: Int[Tensor, "B 2"],
    top_k: int | torch.SymInt = 100,
    *,
    clip_boxes: bool = True,
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"], Float[Tensor, "B K 4"], Int[Tensor, "B K"]]:
    """Select the `top_k` highest-scoring detections of each image.

    With a no-object class, a query yields one detection, of its most probable class (DETR); with sigmoid scores it may
    yield several of different classes (Deformable DETR).

    Args:
        predictions: Predictions of the last decoder layer.
        sizes: (height, width) in pixels of each original image.
        top_k: Number of detections to keep, K; fewer if there are not that many.
        clip_boxes: Clip boxes to the image, as MMDetection does and facebookresearch does not.

    Returns:
        Scores in descending order, labels, boxes_xyxy in pixels, and the index of the query of each detection.
    """
    scores, labels, query = select_top_k(predictions, top_k)
    height, width = sizes.to(scores).unbind(1)
    limits = torch.stack([width, height, width, height], dim=1)[:, None]  # [B, 1, 4]
    boxes = at_least_float32(predictions.boxes)  # [B, Q, 4]
    boxes_xyxy = to_xyxy(boxes).gather(1, query[..., None].expand(-1, -1, 4)) * limits
    if clip_boxes:
        boxes_xyxy = boxes_xyxy.clamp(min=0).minimum(limits)
    return scores, labels, boxes_xyxy, query


def select_top_k(
    predictions: Predictions, top_k: int | torch.SymInt
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"], Int[Tensor, "B K"]]:
    """Return scores in descending order, labels and query indices of the `top_k` detections; see `postprocess`."""
    class_scores = predictions.scores()  # [B, Q, C]
    if predictions.no_object:
        scores, labels = class_scores.max(-1)  # [B, Q]
        scores, query = scores.topk(min(top_k, scores.shape[1]), dim=1)  # [B, K]
        return scores, labels.gather(1, query), query
    scores, index = class_scores.flatten(1).topk(min(top_k, class_scores[0].numel()), dim=1)  # [B, K]
    num_classes = class_scores.shape[2]
    return scores, index % num_classes, index.div(num_classes, rounding_mode="floor")
