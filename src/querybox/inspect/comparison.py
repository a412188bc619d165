"""Matching costs, matching and losses of an image's predictions, as the criterion of training computes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querybox.arguments import require_type
from querybox.inspect.calls import Call, recorded
from querybox.losses.criterion import Criterion
from querybox.modules.detector import DetectionTransformer
from querybox.structures import DetectorOutput, Target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """The predictions of every layer compared with the objects of the image. All tensors are on the CPU."""

    target: Target
    """The objects, G of them."""
    terms: Mapping[str, Float[Tensor, "L G Q"]]
    """Weighted terms of the matching cost of every object and query, by the names of `HungarianMatcher.terms`."""
    cost: Float[Tensor, "L G Q"]
    """Matching cost, the sum of the terms."""
    matched: Int[Tensor, "L G"]
    """The query matched to each object; -1 if there is none, as there are fewer queries than objects."""
    losses: Mapping[str, float]
    """Losses by their names in `Criterion`: ``loss_cls``, ``d0.loss_cls`` ..."""
    seconds: float
    """Time of the criterion, including the matching."""

    def matched_objects(self, queries: int) -> Int[Tensor, "L Q"]:
        """Return the object matched to each of the `queries` in every layer; -1 if there is none."""
        objects = torch.arange(self.matched.shape[1], device="cpu").expand_as(self.matched)
        slots = self.matched.where(self.matched >= 0, queries)  # unmatched objects go to a spare slot
        return slots.new_full((len(slots), queries + 1), -1).scatter(1, slots, objects)[:, :queries]


@torch.no_grad()
def compare(detector: DetectionTransformer, output: DetectorOutput, target: Target) -> Comparison:
    """Compare the predictions for one image with its objects.

    Raises:
        ConfigError: The target has labels that the detector does not have, or the criterion is not known.
        NonFiniteError: A prediction is NaN or infinite.
    """
    target = target.to(detector.device)
    criterion = criterion_of(detector)
    parts = {"criterion": criterion, "matcher": criterion.matcher}
    with recorded(parts, detector.device) as calls:
        losses = criterion(output, [target])
    matching = calls["matcher"][0]  # the first call is that of the decoder layers
    terms = criterion.matcher.terms(**matching.inputs)
    return Comparison(
        target=target.to("cpu"),
        terms={name: values[:, 0].cpu() for name, values in terms.items()},
        cost=criterion.matcher.cost(**matching.inputs)[:, 0].cpu(),
        matched=matched(matching, len(target.labels)),
        losses={name: loss.item() for name, loss in losses.items()},
        seconds=calls["criterion"][0].seconds,
    )


def criterion_of(detector: DetectionTransformer) -> Criterion:
    """Return the criterion of a `Detector`, a subclass of which may have one of its own; or that of the recipe.

    Raises:
        ConfigError: It is not known, or not a `Criterion`.
    """
    own: Any = getattr(detector, "criterion", None)
    if own is None:
        return detector.recipe.criterion() if detector.recipe else Criterion()
    criterion = own()
    require_type("trace", criterion, Criterion, "a Criterion as detector.criterion()")
    assert isinstance(criterion, Criterion)
    return criterion


def matched(matching: Call, objects: int) -> Int[Tensor, "L G"]:
    """Return the query matched to each object in every layer, -1 if there is none."""
    matches = matching.output
    query = matches.query.cpu()
    return query.new_full((len(query), objects), -1).scatter(1, matches.object.cpu(), query)
