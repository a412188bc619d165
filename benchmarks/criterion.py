"""Matching and losses of six decoder layers, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.goals import Goal, faster
from benchmarks.measure import Row, Side, Work
from benchmarks.setup import NUM_CLASSES, Setup, targets
from querybox.losses.criterion import Criterion
from querybox.structures import DetectorOutput, Predictions, Target

OURS = "querybox"
QUERIES, LAYERS = 100, 6
GOALS = {(16, 60): 10.0, (16, 7): 3.0, (2, 7): 2.0}
"""How many times as long the peers have to take, by batch size and objects per image."""


def rows(setup: Setup) -> Iterator[Row]:
    """Yield the four main cases, then the curves over objects, batch size and layers."""
    for batch, objects in ((16, 60), (16, 20), (16, 7), (2, 7)):
        factor = GOALS.get((batch, objects))
        goals = [faster([OURS], peer, factor) for peer in (peers.FACEBOOK, peers.TRANSFORMERS) if factor]
        name = f"criterion-{batch}x{objects}"
        title = f"Criterion, forward and backward, {batch} images of {objects} objects"
        yield row(setup, name, title, batch, objects, LAYERS, goals=goals, seconds=15)
    for objects in (1, 5, 10, 20, 40, 60, 80, 100):
        yield point(setup, "objects", objects, batch=16, objects=objects)
    for batch in (1, 2, 4, 8, 16, 32):
        yield point(setup, "images", batch, batch=batch, objects=20)
    for layers in (1, 2, 3, 4, 5, 6):
        yield point(setup, "layers", layers, batch=16, objects=20, layers=layers)


def point(setup: Setup, axis: str, x: int, *, batch: int, objects: int, layers: int = LAYERS) -> Row:
    """Return one point of a curve."""
    fixed = {
        "images": f"{batch} images",
        "objects": f"{objects} objects an image",
        "layers": f"{layers} layers",
    }
    title = f"Criterion over {axis}; {', '.join(text for name, text in fixed.items() if name != axis)}"
    return row(setup, f"growth-criterion-{axis}-{x}", title, batch, objects, layers, seconds=1.5, x=x)


def row(
    setup: Setup,
    name: str,
    title: str,
    batch: int,
    objects: int,
    layers: int,
    *,
    seconds: float,
    goals: Sequence[Goal] = (),
    x: float | None = None,
) -> Row:
    """Return a row; its sides return the loss and its gradients."""
    # Long because the three equivalent sides are easiest to compare next to each other.

    def ours() -> Work:
        logits, boxes, wanted = task(batch, objects, layers)
        criterion = Criterion()

        def work() -> list[Tensor]:
            predictions = [Predictions(logits=a, boxes=b) for a, b in zip(logits, boxes, strict=True)]
            losses = criterion(DetectorOutput(layers=tuple(predictions)), wanted)
            return backward(sum(losses.values(), torch.zeros(())), logits, boxes)

        return work

    def facebook() -> Work:
        _, criterion = peers.facebook(setup.facebook)
        logits, boxes, wanted = task(batch, objects, layers)
        theirs = peers.facebook_targets(wanted)

        def work() -> list[Tensor]:
            named = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits, boxes, strict=True)]
            losses = criterion({**named[-1], "aux_outputs": named[:-1]}, theirs)
            weights = criterion.weight_dict
            loss = sum(losses[key] * weights[key] for key in losses if key in weights)
            return backward(loss, logits, boxes)

        return work

    def transformers() -> Work:
        from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

        config = peers.transformers_config()
        logits, boxes, wanted = task(batch, objects, layers)
        theirs = peers.transformers_targets(wanted)

        def work() -> list[Tensor]:
            loss, *_ = ForObjectDetectionLoss(logits[-1], theirs, "cpu", boxes[-1], config, logits, boxes)
            return backward(loss, logits, boxes)

        return work

    sides = [
        Side(name=OURS, build=ours),
        Side(name=peers.FACEBOOK, build=facebook, tolerance=1e-4),
        Side(name=peers.TRANSFORMERS, build=transformers, tolerance=1e-4),
    ]
    return Row(
        name=name,
        title=title,
        sides=sides,
        difference=furthest,
        goals=goals,
        seconds=setup.seconds(seconds),
        x=x,
    )


def task(batch: int, objects: int, layers: int) -> tuple[Tensor, Tensor, list[Target]]:
    """Return logits and boxes of all layers, as leaf tensors, and the objects."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(layers, batch, QUERIES, NUM_CLASSES + 1, generator=random)
    boxes = torch.rand(layers, batch, QUERIES, 4, generator=random) * 0.5 + 0.1
    return logits.requires_grad_(), boxes.requires_grad_(), targets(batch, objects)


def backward(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    """Return the loss and its gradients."""
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def furthest(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest difference between two values, relative if they are above 1."""
    return max(float(((x - y).abs() / x.abs().clamp(min=1)).max()) for x, y in zip(a, b, strict=True))
