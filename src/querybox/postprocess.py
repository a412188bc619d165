"""From predictions to detections: scores, classes, and boxes in pixels of the original image."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from querybox.boxes import to_xyxy
from querybox.structures import Predictions


def postprocess(
    predictions: Predictions, sizes: Int[Tensor, "B 2"], top_k: int = 100
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"], Float[Tensor, "B K 4"]]:
    """Return scores (descending), labels and boxes_xyxy of the `top_k` best queries.

    A query counts once, with its best real class. Boxes are in pixels and clipped to the image, as MMDetection
    has it; facebookresearch's own code does not clip.

    Args:
        predictions: Those of the last decoder layer.
        sizes: (height, width) in pixels of each original image.
        top_k: How many detections to keep, at most Q.
    """
    scores, labels = predictions.logits.float().softmax(-1)[..., :-1].max(-1)  # [B, Q]
    scores, best = scores.topk(min(top_k, scores.shape[1]), dim=1)  # [B, K]
    height, width = sizes.to(scores).unbind(1)
    limits = scores.new_zeros(sizes.shape[0], 1, 4)
    limits[:, 0, 0::2], limits[:, 0, 1::2] = width[:, None], height[:, None]
    boxes_xyxy = to_xyxy(predictions.boxes.float()).gather(1, best[..., None].expand(-1, -1, 4)) * limits
    return scores, labels.gather(1, best), boxes_xyxy.clamp(min=0).minimum(limits)
