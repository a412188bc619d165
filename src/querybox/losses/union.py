"""The union of the matchings of several layers (D-FINE's GO-union: global optimal matching over all layers)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from querybox.structures import Matches


def union_of_matches(matchings: Sequence[Matches], num_queries: int, num_objects: int) -> Matches:
    """Return all pairs of a query and an object that are matched in any layer.

    A query that has different objects keeps the one it has in the most layers, of several the first. An object may have
    several queries.

    Args:
        matchings: The matchings, all of the same images and queries.
        num_queries: Queries of each image.
        num_objects: Objects of all images.
    """
    objects = max(1, num_objects)
    rows = [(each.image * num_queries + each.query) * objects + each.object for each in matchings]
    pairs, counts = torch.cat([each.flatten() for each in rows]).unique(return_counts=True)
    # They are sorted by query, then by object.
    pairs = pairs[counts.argsort(descending=True, stable=True)]
    pairs = pairs[(pairs // objects).argsort(stable=True)]  # by query, the most frequent object first
    pairs = pairs[(pairs // objects).diff(prepend=pairs.new_full((1,), -1)) > 0]  # the first of each query
    queries = pairs // objects
    return Matches(
        image=queries // num_queries, query=(queries % num_queries)[None], object=(pairs % objects)[None]
    )
