"""The training criterion of D-FINE (Peng et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from querybox.losses.criterion import Criterion, num_pairs, split_by_layer
from querybox.losses.edges import distillation_shares, edge_losses
from querybox.losses.union import union_of_matches
from querybox.structures import DetectorOutput, Target


class FineCriterion(Criterion):
    """Classes are supervised with the matching of each layer, boxes and distributions with the union of all."""

    def forward(
        self, output: DetectorOutput, targets: Sequence[Target], object_counts: Sequence[int] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the weighted losses by name; see `Criterion.forward`.

        In addition to those there, ``loss_fgl`` and ``loss_ddf`` are the losses of distributions.
        """
        self.check_inputs(output, targets)
        counts = object_counts or [len(target.labels) for target in targets]
        groups = list(self.supervised(output, targets))
        given = output.denoising_matches
        matchings = [each.matches for each in groups if each.matches is not given]
        objects = torch.cat([target.boxes for target in targets])
        union = union_of_matches(matchings, output.layers[0].logits.shape[1], len(objects))
        shares = distillation_shares(union, output.layers[0], len(targets) / len(counts))
        losses: dict[str, Tensor] = {}
        for prefix, layers, labelled, matches in groups:
            joint = None if matches is given else union
            losses |= self.layer_losses(layers, labelled, counts, matches, joint, prefix=prefix)
            if (edges := layers[0].edges) is not None:
                pairs = joint or matches
                num_matched = num_pairs(pairs, targets, counts, like=edges.logits)
                values = edge_losses(layers, objects, pairs, num_matched=num_matched, shares=shares)
                losses |= split_by_layer(values, prefix)
        return losses
