"""From predictions to detections: scores, classes, and boxes in pixels of the original image."""

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
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"], Float[Tensor, "B K 4"]]:
    """Return scores (descending), labels and boxes_xyxy of the `top_k` best answers.

    Where classes share a softmax, a query counts once, with its best real class (DETR); where each is judged alone,
    a query may count with several (Deformable DETR). Boxes are in pixels.

    Args:
        predictions: Those of the last decoder layer.
        sizes: (height, width) in pixels of each original image.
        top_k: How many detections to keep, at most Q.
        clip_boxes: Cut boxes to the image, as MMDetection does and facebookresearch does not.
    """
    scores, labels, query = best_answers(predictions, top_k)
    height, width = sizes.to(scores).unbind(1)
    limits = torch.stack([width, height, width, height], dim=1)[:, None]  # [B, 1, 4]
    boxes = at_least_float32(predictions.boxes)  # [B, Q, 4]
    boxes_xyxy = to_xyxy(boxes).gather(1, query[..., None].expand(-1, -1, 4)) * limits
    if clip_boxes:
        boxes_xyxy = boxes_xyxy.clamp(min=0).minimum(limits)
    return scores, labels, boxes_xyxy


def best_answers(
    predictions: Predictions, top_k: int | torch.SymInt
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"], Int[Tensor, "B K"]]:
    """Return scores (descending), labels and queries of the best answers; see `postprocess`."""
    real = predictions.scores()  # [B, Q, C]
    if predictions.no_object:
        scores, labels = real.max(-1)  # [B, Q]
        scores, query = scores.topk(min(top_k, scores.shape[1]), dim=1)  # [B, K]
        return scores, labels.gather(1, query), query
    scores, best = real.flatten(1).topk(min(top_k, real[0].numel()), dim=1)  # [B, K]
    return scores, best % real.shape[2], best.div(real.shape[2], rounding_mode="floor")
