"""Verification that the outputs of an exported model equal those of its detector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from querybox.errors import CheckpointError, ExportError
from querybox.exporting.card import Card, ExportedPrecision
from querybox.exporting.engine import ExportedModel, Outputs
from querybox.exporting.graph import Graph
from querybox.exporting.signature import CURE, check_outputs
from querybox.inference.engine import evaluating
from querybox.inference.postprocess import postprocess
from querybox.mask_embeddings import MaskLogits
from querybox.memory import first_line, is_out_of_memory
from querybox.modules.detector import DetectionTransformer
from querybox.modules.queries import gather_rows
from querybox.pixels import pad, smooth_image
from querybox.structures import Memory

TOLERANCES: dict[ExportedPrecision, float] = {"float32": 1e-4, "bf16": 0.1, "fp16": 0.05}
"""Largest allowed difference of a class probability or a box coordinate (both 0-1), by precision."""
DETECTION_TOLERANCE = 1e-5
"""Largest allowed difference between the detections of a model and those computed from its own logits and boxes."""
PROBE_TOLERANCES: dict[ExportedPrecision, float] = {"float32": 1e-4, "bf16": 0.02, "fp16": 1e-4, "int8": 1e-3}
"""`DETECTION_TOLERANCE` for a model that is loaded, perhaps on another machine than the one that wrote it, by
precision."""
PROBE = (128, 160)
"""(height, width) of the image on which a model of any size is run when it is loaded."""
TIE = 1e-6
"""Detections whose scores differ by no more may come in either order."""
NOISE, TRIES = (3e-6, 1e-5, 3e-5), 24
"""Standard deviations of the noise that simulates rounding in memory tokens, which is larger the deeper the model, and
the number of attempts with them, in turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Differences between an exported model and its detector, over all batches compared."""

    precision: ExportedPrecision
    """Precision in which the model was compared: float32 if that was done before rounding."""
    batches: int
    """Number of batches compared."""
    scores: float
    """Largest difference of a class probability, 0-1."""
    boxes: float
    """Largest difference of a box coordinate, in 0-1 of the image."""
    masks: float | None = None
    """Largest difference of a mask: the mean of that of its probabilities, 0-1; None without masks."""


def verify(detector: DetectionTransformer, model: ExportedModel) -> Verification:
    """Compare an exported model with its detector on batches of several sizes, with and without padding.

    If queries are made from the encoder's proposals, they are ranked by score, and proposals whose scores are equal up
    to rounding may come in either order. Queries whose order does not matter are compared with the closest ones.
    Besides, each image may match the output of the detector with noise of the magnitude of rounding in its memory.

    Raises:
        ExportError: The outputs differ by more than `TOLERANCES` allows for the model's precision.
    """
    tolerance = TOLERANCES[model.card.precision]
    largest = []
    for pixels, sizes in verification_batches(model.card):
        outputs = model.run(pixels, sizes)
        largest.append(differences(detector, model, pixels, sizes, outputs).amax(1))
        check_detections(outputs, sizes, model)
    scores, boxes, *masks = torch.stack(largest).amax(0).tolist()
    if max(scores, boxes, *masks) > tolerance:
        found = "".join(f", masks by {each:.2g}" for each in masks)
        cure = (
            "try another format, and please report this"
            if model.card.precision == "float32"
            else f"{model.card.precision} is too coarse for this model, or its values are too large: use float32"
        )
        raise ExportError(
            f"the exported model differs from its detector: scores by {scores:.2g}, boxes by {boxes:.2g} of the image"
            f"{found}; expected at most {tolerance:g}; nothing was written: {cure}"
        )
    return Verification(
        precision=model.card.precision,
        batches=len(largest),
        scores=scores,
        boxes=boxes,
        masks=masks[0] if masks else None,
    )


def differences(
    detector: DetectionTransformer,
    model: ExportedModel,
    pixels: UInt8[Tensor, "B 3 H W"],
    sizes: Int[Tensor, "B 2"],
    outputs: Outputs,
) -> Float[Tensor, "_ B"]:
    """Return each image's largest differences of class probabilities, boxes and any masks from the detector's outputs.

    They are infinite if the outputs contain NaN or have the wrong shape.
    """
    graph, generator = Graph(detector), torch.Generator().manual_seed(0)
    in_float32 = torch.autocast(detector.device.type, enabled=False)
    smallest = torch.full((2 + model.card.masks, len(pixels)), torch.inf)
    attempt = 0

    def add_noise(_: nn.Module, __: object, memory: Memory) -> Memory:
        noise = NOISE[attempt % len(NOISE)] * torch.randn(memory.tokens.shape, generator=generator)
        return replace(memory, tokens=memory.tokens + noise.to(memory.tokens))

    for attempt in range(1 + TRIES * detector.proposes_queries):
        noisy = detector.encoder.register_forward_hook(add_noise) if attempt else nullcontext()
        with evaluating(detector), torch.inference_mode(), in_float32, noisy:
            values = graph(pixels.to(detector.device), sizes.to(detector.device))
        expected = {name: value.cpu() for name, value in zip(model.card.outputs, values, strict=True)}
        predictions, right = model.predictions(outputs), model.predictions(expected)
        scores, right_scores = predictions.scores(), right.scores()
        boxes, right_boxes = predictions.boxes, right.boxes
        order = torch.arange(boxes.shape[1]).expand(len(boxes), -1)
        if detector.exchanges_queries and scores.shape == right_scores.shape:
            order = closest(torch.cat([scores, boxes], 2), torch.cat([right_scores, right_boxes], 2))
            right_scores, right_boxes = gather_rows(right_scores, order), gather_rows(right_boxes, order)
        largest = [max_difference(scores, right_scores), max_difference(boxes, right_boxes)]
        if isinstance(predictions.masks, MaskLogits) and isinstance(right.masks, MaskLogits):
            largest.append(mask_difference(predictions.masks, right.masks, order))
        current = torch.stack(largest)  # [2 or 3, B]
        smallest = torch.where(current.amax(0) < smallest.amax(0), current, smallest)  # NaN is never smaller
        if (smallest <= TOLERANCES[model.card.precision]).all():
            break
    return smallest


def verification_batches(card: Card) -> Iterator[tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, "B 2"]]]:
    """Yield one image, two images that pad each other, and a small odd-sized one padded at the right and bottom.

    For a fixed size, yield one image and, if images may be padded, a smaller one.
    """
    side = max(card.preprocessing.short_side, 128, 2 * card.min_side)  # half of it is used as well
    image = partial(smooth_image, generator=torch.Generator().manual_seed(0))

    if card.size is not None:
        yield pad([image(*card.size)])
        if card.padded:
            height, width = card.size
            pixels, sizes = pad([image(height - 13, width - 7)])
            yield F.pad(pixels, (0, 7, 0, 13), value=255), sizes
        return
    yield pad([image(side, 4 * side // 3)])
    yield pad([image(3 * side // 4, side), image(side, 3 * side // 4 + 7)])
    height, width = side // 2 + 5, side // 2 + 38
    pixels, sizes = pad([image(height, width)])
    yield F.pad(pixels, (0, 45, 0, 70), value=255), sizes  # the content of the padding must not matter


def closest(rows: Float[Tensor, "B Q N"], candidates: Float[Tensor, "B Q N"]) -> Int[Tensor, "B Q"]:
    """Assign each row a candidate of its own, with the least sum of distances, and return the candidates' indices."""
    distances = torch.cdist(rows, candidates, p=math.inf).nan_to_num(nan=math.inf).clamp(max=1e9)
    return torch.stack(
        [torch.from_numpy(scipy.optimize.linear_sum_assignment(each)[1]) for each in distances.numpy()]
    )


def max_difference(actual: Tensor, expected: Tensor) -> Float[Tensor, " B"]:
    """Return each image's largest absolute difference; NaN if the shapes differ."""
    if actual.shape != expected.shape:
        return torch.full((len(expected),), torch.nan)
    return (actual - expected).abs().flatten(1).amax(1)


def mask_difference(
    actual: MaskLogits, expected: MaskLogits, order: Int[Tensor, "B Q"]
) -> Float[Tensor, " B"]:
    """Return each image's largest mean difference of the probabilities of a mask; NaN if the shapes differ.

    Args:
        actual: The masks to compare.
        expected: Masks of the same queries, of which a few may be of others whose scores are equal up to rounding.
        order: The query of `expected` for each query of `actual`.
    """
    if actual.maps.shape != expected.maps.shape:
        return torch.full((len(expected.maps),), torch.nan)
    largest = []
    for index, right_index, maps, right_maps in zip(
        actual.index, expected.index.gather(1, order), actual.maps, expected.maps, strict=True
    ):
        both = (index >= 0) & (right_index >= 0)
        difference = maps[index[both]].sigmoid() - right_maps[right_index[both]].sigmoid()
        largest.append(difference.abs().mean((1, 2)).amax())
    return torch.stack(largest)


def verify_detections(model: ExportedModel) -> None:
    """Check an exported model's detections against its own logits and boxes, on the batches of `verify`.

    Raises:
        ExportError: They do not match, or a value is NaN.
    """
    for pixels, sizes in verification_batches(model.card):
        check_detections(model.run(pixels, sizes), sizes, model)


def check_detections(outputs: Outputs, sizes: Int[Tensor, "B 2"], model: ExportedModel) -> None:
    """Raise `ExportError` unless the model's detections equal those computed from its own logits and boxes."""
    if not is_consistent(outputs, sizes, model, DETECTION_TOLERANCE, TIE):
        raise ExportError(
            "the exported model's detections do not match its own logits and boxes; nothing was written: try "
            "another format, and please report this"
        )


def probe(model: ExportedModel, where: object) -> None:
    """Run a model once on a small image, to compare its answer with its card.

    Raises:
        CheckpointError: It cannot be run, or its detections are not those that the card gives for its logits and boxes.
    """
    generator = torch.Generator().manual_seed(0)
    size = PROBE if model.card.size is None else model.card.size
    pixels = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([size])
    try:
        outputs = model.run(pixels, sizes)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{where}: cannot be run ({first_line(error)}): {CURE}") from error
    check_outputs(where, model.card, outputs, batch=1)
    tolerance = PROBE_TOLERANCES[model.card.precision]
    if not is_consistent(outputs, sizes, model, tolerance, 2 * tolerance):
        raise CheckpointError(
            f"{where}: its detections are not those of its logits, boxes and classes: {CURE}"
        )


def is_consistent(
    outputs: Outputs, sizes: Int[Tensor, "B 2"], model: ExportedModel, tolerance: float, tie: float
) -> bool:
    """Return whether the model's detections equal those computed from its own logits and boxes.

    Args:
        outputs: The outputs of the model.
        sizes: The sizes of the images.
        model: The model.
        tolerance: Largest allowed difference of a score (0-1), or of an edge in the longer side of the image.
        tie: Detections whose scores differ by no more may come in either order.
    """
    count = outputs["scores"].shape[1]
    best = postprocess(
        model.predictions(outputs),
        sizes,
        top_k=count + 1,  # the last one may be tied with one that is left out
        clip_boxes=model.preprocessing.clip_boxes,
    )
    gap = F.pad(-best[0].diff(dim=1), (1, 1), value=1.0)
    untied = ((gap[:, 1:] > tie) & (gap[:, :-1] > tie))[:, :count]
    scores, labels, boxes_xyxy, queries = (each[:, :count] for each in best)
    side = sizes.amax(1)[:, None, None]
    return bool(
        outputs["labels"].shape == labels.shape
        and outputs["boxes_xyxy"].shape == boxes_xyxy.shape
        and (max_difference(outputs["scores"], scores) <= tolerance).all()
        and torch.equal(outputs["labels"][untied], labels[untied])
        and (not model.card.masks or is_same(outputs["queries"][:, :count], queries, untied))
        and (((outputs["boxes_xyxy"] - boxes_xyxy) / side)[untied].abs() <= tolerance).all()
    )


def is_same(actual: Int[Tensor, "B M"], expected: Int[Tensor, "B K"], untied: Bool[Tensor, "B K"]) -> bool:
    """Return whether the first values of `expected` are those of `actual` where they are `untied`."""
    count = actual.shape[1]
    return torch.equal(actual[untied[:, :count]], expected[:, :count][untied[:, :count]])
