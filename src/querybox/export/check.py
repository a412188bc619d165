"""The proof that an exported model answers as its detector does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from querybox.detector import Detector
from querybox.engine import evaluating
from querybox.errors import ExportError
from querybox.export.card import OUTPUTS, Precision
from querybox.export.engine import Answers, ExportedModel
from querybox.export.graph import Graph
from querybox.postprocess import postprocess
from querybox.structures import Predictions, pad

TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "bf16": 0.1}
"""Most that a query's probability of a class, or a box coordinate in 0-1 of the image, may differ."""
EXACT = 1e-5
"""The same between a file's detections and what its own logits and boxes amount to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How far an exported model is from its detector, over all batches compared."""

    batches: int
    scores: float
    """Largest difference of a query's probability of a class, 0-1."""
    boxes: float
    """Largest difference of a box coordinate, in 0-1 of the image."""


def prove(detector: Detector, model: ExportedModel) -> Proof:
    """Compare an exported model with its detector on batches of several sizes, with padding and without.

    Raises:
        ExportError: They differ by more than `TOLERANCES` allows for the model's precision.
    """
    graph = Graph(detector)
    scores, boxes = [], []
    for pixels, sizes in batches(detector.preprocessing.short_side):
        with evaluating(detector), torch.inference_mode():
            right = dict(
                zip(OUTPUTS, graph(pixels.to(detector.device), sizes.to(detector.device)), strict=True)
            )
        got = model.run(pixels, sizes)
        scores.append(difference(got["logits"].softmax(-1), right["logits"].softmax(-1)))
        boxes.append(difference(got["boxes"], right["boxes"]))
        require_detections(got, sizes, model)
    proof = Proof(batches=len(scores), scores=max(scores), boxes=max(boxes))
    tolerance = TOLERANCES[model.card.precision]
    if not (proof.scores <= tolerance and proof.boxes <= tolerance):  # NaN is no answer either
        raise ExportError(
            f"the exported model differs from its detector: scores by {proof.scores:.2g}, boxes by {proof.boxes:.2g} "
            f"of the image; expected at most {tolerance:g}; nothing was written: try another format, and report it"
        )
    return proof


def batches(short_side: int) -> Iterator[tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, "B 2"]]]:
    """Yield one image, two that pad each other, and a small one of odd size with padding on both sides."""
    side = max(short_side, 128)
    noise = torch.Generator().manual_seed(0)

    def image(height: int, width: int) -> UInt8[Tensor, "3 h w"]:
        coarse = torch.rand(1, 3, 9, 9, generator=noise)
        return (255 * F.interpolate(coarse, size=(height, width), mode="bilinear")[0]).byte()

    yield pad([image(side, 4 * side // 3)])
    yield pad([image(3 * side // 4, side), image(side, 3 * side // 4 + 7)])
    height, width = side // 2 + 5, side // 2 + 38
    pixels, sizes = pad([image(height, width)])
    yield F.pad(pixels, (0, 45, 0, 70), value=255), sizes  # what the padding holds must not matter


def difference(got: Tensor, right: Tensor) -> float:
    """Return the largest absolute difference; NaN where the shapes differ, too."""
    return float((got - right.cpu()).abs().max()) if got.shape == right.shape else float("nan")


def require_detections(got: Answers, sizes: Int[Tensor, "B 2"], model: ExportedModel) -> None:
    """Raise ExportError unless the file's detections are what its own logits and boxes amount to."""
    scores, labels, boxes_xyxy = postprocess(
        Predictions(logits=got["logits"], boxes=got["boxes"]),
        sizes,
        top_k=got["logits"].shape[1],
        class_rows=model.class_rows,
        clip_boxes=model.preprocessing.clip_boxes,
    )
    gap = F.pad(-scores.diff(dim=1), (1, 1), value=1.0)
    clear = (gap[:, 1:] > EXACT) & (gap[:, :-1] > EXACT)  # equal scores come in any order
    side = sizes.amax(1)[:, None, None]
    if not (
        difference(got["scores"], scores) <= EXACT
        and torch.equal(got["labels"][clear], labels[clear])
        and difference((got["boxes_xyxy"] / side)[clear], (boxes_xyxy / side)[clear]) <= EXACT
    ):
        raise ExportError(
            "the exported model's detections are not what its logits and boxes amount to; nothing was written: try "
            "another format, and report it"
        )
