"""The training criterion of D-FINE (Peng et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from querybox.losses.criterion import Criterion, num_pairs, split_by_layer
from querybox.losses.edges import distillation_shares, edge_losses
from querybox.losses.union import union_of_matches
from querybox.structures import DetectorOutput, Matches, Predictions, Target, at_least_float32


class FineCriterion(Criterion):
    """Classes are supervised with the matching of each layer, boxes and distributions with the union of all."""

    def forward(
        self, output: DetectorOutput, targets: Sequence[Target], object_counts: Sequence[int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted losses by name; see `Criterion.forward`.

        In addition to those there, ``loss_fgl`` and ``loss_ddf`` are the losses of distributions, and ``pre_loss_cls``
        ... those of the start boxes, from which the distributions measure.
        """
        self.check_inputs(output, targets)
        counts = object_counts or [len(target.labels) for target in targets]
        layers = output.layers
        matched: dict[str, Sequence[Predictions]] = {"": layers}
        if layers[0].initial is not None:
            matched["pre_"] = (layers[0].initial,)
        if output.proposals is not None:
            matched["enc_"] = (output.proposals,)
        matches = {prefix: self.match(each, targets) for prefix, each in matched.items()}
        num_objects = sum(len(target.labels) for target in targets)
        union = union_of_matches([*matches.values()], layers[0].logits.shape[1], num_objects)
        losses: dict[str, Tensor] = {}
        for prefix, each in matched.items():
            losses |= self.layer_losses(each, targets, counts, matches[prefix], union, prefix=prefix)
        shares = distillation_shares(union, layers[0], len(targets) / len(counts))
        losses |= self.distribution_losses(layers, targets, counts, union, shares)
        if output.denoising_matches is not None:
            given, denoised = output.denoising_matches, output.denoising
            losses |= self.layer_losses(denoised, targets, counts, given, prefix="dn_")
            losses |= self.distribution_losses(denoised, targets, counts, given, shares, prefix="dn_")
            if denoised[0].initial is not None:
                losses |= self.layer_losses((denoised[0].initial,), targets, counts, given, prefix="dn_pre_")
        return losses

    def distribution_losses(
        self,
        layers: Sequence[Predictions],
        targets: Sequence[Target],
        object_counts: Sequence[int],
        matches: Matches,
        shares: tuple[float, float],
        *,
        prefix: str = "",
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the losses of the distributions of some layers."""
        boxes = at_least_float32(layers[0].boxes)
        losses = edge_losses(
            layers,
            torch.cat([target.boxes for target in targets]).to(boxes.dtype),
            matches,
            num_matched=num_pairs(matches, targets, object_counts, like=boxes),
            shares=shares,
        )
        return split_by_layer({f"{prefix}{name}": values for name, values in losses.items()})
