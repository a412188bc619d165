"""Numbers that cannot be: in targets, in weights, in predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from querybox import Detector, ImageBatch, Target
from querybox.errors import QueryboxError
from torture.case import Case, require
from torture.data_sets import tiny_detector

PIXELS = torch.zeros(3, 64, 64, dtype=torch.uint8)


def told(action: Callable[[], object]) -> bool:
    """Return whether the library tells of it."""
    try:
        action()
    except QueryboxError:
        return True
    return False


def targets(_: Path, __: bool) -> str:
    """Compute losses with labels and boxes that no object can have."""
    detector = tiny_detector()
    batch = ImageBatch.from_images([PIXELS])
    output, classes = detector(batch), len(detector.categories)
    box = [0.5, 0.5, 0.2, 0.2]
    faults = [(box, -1), (box, classes), (box, 10**9), ([320.0, 240, 64, 64], 0), ([-0.5, 0.5, 0.2, 0.2], 0)]
    faults += [([value, 0.5, 0.2, 0.2], 0) for value in (math.nan, math.inf, -math.inf)]

    def losses(corners: list[float], label: int) -> object:
        target = Target(boxes=torch.tensor([corners]), labels=torch.tensor([label]))
        return detector.criterion()(output, [target])

    for corners, label in faults:
        require(told(lambda: losses(corners, label)), f"label {label}, box {corners}: losses")  # noqa: B023 - called at once
    require(not told(lambda: losses(box, classes - 1)), "a sound target was refused")
    return f"{len(faults)} told before the losses"


def weights(folder: Path, long: bool) -> str:
    """Save, predict and trace with one NaN or infinite number in each tensor of a detector."""
    detector, path = tiny_detector().eval(), folder / "model.safetensors"
    detector.save(path)
    before, count = path.read_bytes(), 0
    tensors = [tensor for tensor in detector.state_dict().values() if tensor.is_floating_point()]
    for tensor in tensors[:: 1 if long else 20]:
        for value in (math.nan, math.inf):
            flat = tensor.view(-1)
            sound, flat[0] = flat[0].clone(), value
            require(told(lambda: detector.save(path)), "saved")
            answered(detector)
            flat[0], count = sound, count + 1
    require(path.read_bytes() == before, "the older file was changed")
    detector.save(path)
    return f"{count} not saved, no answer with NaN"


def answered(detector: Detector) -> None:
    """Require an error or detections that are finite: ReLU and batch norms can absorb a number."""
    try:
        (found,) = detector.predict(PIXELS, threshold=0.0)
    except QueryboxError:
        return
    require(bool(found.scores.isfinite().all() and found.boxes_xyxy.isfinite().all()), "NaN answers")


CASES = [
    Case(name="labels and boxes that cannot be", required="told before the losses", run=targets),
    Case(name="NaN and infinite weights", required="not saved; told, or finite answers", run=weights),
]
