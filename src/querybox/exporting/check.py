"""The proof that an exported model answers as its detector does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from querybox.errors import ExportError
from querybox.exporting.card import OUTPUTS, Precision
from querybox.exporting.engine import Answers, ExportedModel
from querybox.exporting.graph import Graph
from querybox.inference.engine import evaluating
from querybox.inference.postprocess import postprocess
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Memory, pad

TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "bf16": 0.1}
"""Most that a query's probability of a class, or a box coordinate in 0-1 of the image, may differ."""
EXACT = 1e-5
"""The same between a file's detections and what its own logits and boxes amount to."""
TIE = 1e-6
"""Scores that differ by no more may come in either order."""
NOISE, TRIES = 3e-6, 16
"""What rounding does to a feature of a memory token, and how often that is tried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How far an exported model is from its detector, over all batches compared."""

    batches: int
    scores: float
    """Largest difference of a query's probability of a class, 0-1."""
    boxes: float
    """Largest difference of a box coordinate, in 0-1 of the image."""


def prove(detector: DetectionTransformer, model: ExportedModel) -> Proof:
    """Compare an exported model with its detector on batches of several sizes, with padding and without.

    Queries that are made of the encoder's proposals are ranked by scores, and of two that are equal but for rounding
    either may come first. So an image may also be answered as the detector answers it with noise of the size of
    rounding in its memory; nothing else is forgiven.

    Raises:
        ExportError: They differ by more than `TOLERANCES` allows for the model's precision.
    """
    tolerance = TOLERANCES[model.card.precision]
    worst = []
    for pixels, sizes in batches(detector.preprocessing.short_side):
        got = model.run(pixels, sizes)
        worst.append(differences(detector, model, pixels, sizes, got).amax(1))
        require_detections(got, sizes, model)
    scores, boxes = torch.stack(worst).amax(0).tolist()
    if max(scores, boxes) > tolerance:
        raise ExportError(
            f"the exported model differs from its detector: scores by {scores:.2g}, boxes by {boxes:.2g} of the image; "
            f"expected at most {tolerance:g}; nothing was written: try another format, and report it"
        )
    return Proof(batches=len(worst), scores=scores, boxes=boxes)


def differences(
    detector: DetectionTransformer,
    model: ExportedModel,
    pixels: UInt8[Tensor, "B 3 H W"],
    sizes: Int[Tensor, "B 2"],
    got: Answers,
) -> Float[Tensor, "2 B"]:
    """Return how far each image's probabilities and boxes are from the detector's; infinite where they are none."""
    graph, generator = Graph(detector), torch.Generator().manual_seed(0)

    def shake(_: nn.Module, __: object, memory: Memory) -> Memory:
        noise = NOISE * torch.randn(memory.tokens.shape, generator=generator)
        return replace(memory, tokens=memory.tokens + noise.to(memory.tokens))

    least = torch.full((2, len(pixels)), torch.inf)
    for attempt in range(1 + TRIES * detector.proposes_queries):
        shaking = detector.encoder.register_forward_hook(shake) if attempt else nullcontext()
        with evaluating(detector), torch.inference_mode(), shaking:
            answers = graph(pixels.to(detector.device), sizes.to(detector.device))
        right = {name: answer.cpu() for name, answer in zip(OUTPUTS, answers, strict=True)}
        scores = [model.predictions(each).scores() for each in (got, right)]
        new = torch.stack([difference(*scores), difference(got["boxes"], right["boxes"])])  # [2, B]
        least = torch.where(new.amax(0) < least.amax(0), new, least)  # NaN is never less
        if (least <= TOLERANCES[model.card.precision]).all():
            break
    return least


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


def difference(got: Tensor, right: Tensor) -> Float[Tensor, " B"]:
    """Return each image's largest absolute difference; NaN where the shapes differ, too."""
    if got.shape != right.shape:
        return torch.full((len(right),), torch.nan)
    return (got - right).abs().flatten(1).amax(1)


def require_detections(got: Answers, sizes: Int[Tensor, "B 2"], model: ExportedModel) -> None:
    """Raise ExportError unless the file's detections are what its own logits and boxes amount to."""
    count = got["scores"].shape[1]
    best = postprocess(
        model.predictions(got),
        sizes,
        top_k=count + 1,  # the last one may be as good as one that is left out
        clip_boxes=model.preprocessing.clip_boxes,
    )
    gap = F.pad(-best[0].diff(dim=1), (1, 1), value=1.0)
    clear = ((gap[:, 1:] > TIE) & (gap[:, :-1] > TIE))[:, :count]
    scores, labels, boxes_xyxy = (each[:, :count] for each in best)
    side = sizes.amax(1)[:, None, None]
    if not (
        (difference(got["scores"], scores) <= EXACT).all()
        and torch.equal(got["labels"][clear], labels[clear])
        and bool((((got["boxes_xyxy"] - boxes_xyxy) / side)[clear].abs() <= EXACT).all())
    ):
        raise ExportError(
            "the exported model's detections are not what its logits and boxes amount to; nothing was written: try "
            "another format, and report it"
        )
