"""What training would make of an answer: costs, matching and losses, from the criterion itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querybox.errors import ConfigError
from querybox.inspect.calls import Call, recorded
from querybox.losses.criterion import Criterion
from querybox.modules.detector import DetectionTransformer
from querybox.structures import DetectorOutput, Target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """The answers of every layer held against the objects of the image. All tensors are on the CPU."""

    target: Target
    """The objects, G of them."""
    terms: Mapping[str, Float[Tensor, "L G Q"]]
    """What the cost of every object with every query is the sum of, weighted: ``class``, ``box`` and ``giou``."""
    cost: Float[Tensor, "L G Q"]
    """What the matcher minimises."""
    matched: Int[Tensor, "L G"]
    """The query that answers for each object; -1 where there are fewer queries than objects."""
    losses: Mapping[str, float]
    """By the names of `Criterion`: ``loss_cls``, ``d0.loss_cls`` ..."""
    seconds: float
    """What the criterion took, matching and all."""

    def wanted(self, queries: int) -> Int[Tensor, "L Q"]:
        """Return the object that each of the `queries` has to find, in every layer; -1: none."""
        objects = torch.arange(self.matched.shape[1]).expand_as(self.matched)
        slots = self.matched.where(self.matched >= 0, queries)  # what has no query goes to a spare one
        return torch.full((len(slots), queries + 1), -1).scatter(1, slots, objects)[:, :queries]


@torch.no_grad()
def compare(detector: DetectionTransformer, output: DetectorOutput, target: Target) -> Comparison:
    """Hold the answers to one image against its objects.

    Raises:
        ConfigError: The target has labels that the detector does not know.
        NonFiniteError: A prediction is NaN or infinite.
    """
    target = target.to(detector.device)
    criterion = detector.recipe.criterion() if detector.recipe else Criterion()
    parts = {"criterion": criterion, "matcher": criterion.matcher}
    with recorded(parts, detector.device) as calls:
        losses = criterion(output, [on_rows(detector, target)])
    matching = calls["matcher"][0]  # that of the decoder's layers comes first
    terms = criterion.matcher.terms(**matching.inputs)
    return Comparison(
        target=target.to("cpu"),
        terms={name: values[:, 0].cpu() for name, values in terms.items()},
        cost=criterion.matcher.cost(**matching.inputs)[:, 0].cpu(),
        matched=matched(matching, len(target.labels)),
        losses={name: loss.item() for name, loss in losses.items()},
        seconds=calls["criterion"][0].seconds,
    )


def on_rows(detector: DetectionTransformer, target: Target) -> Target:
    """Return the target with the rows of the class head for labels; they differ where some rows are unused."""
    known = len(detector.categories)
    if len(target.labels) and not 0 <= int(target.labels.min()) <= int(target.labels.max()) < known:
        raise ConfigError(
            f"trace got a target with labels {target.labels.tolist()}; the detector knows 0 to {known - 1}"
        )
    rows = torch.tensor(detector.class_rows, device=target.labels.device)
    return replace(target, labels=rows[target.labels])


def matched(matching: Call, objects: int) -> Int[Tensor, "L G"]:
    """Return each object's query in every layer, -1 where it has none."""
    matches = matching.output
    found = torch.full((len(matches.query), objects), -1)
    return found.scatter(1, matches.object.cpu(), matches.query.cpu())
