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
    # On the host, which would otherwise wait for a GPU at every size that depends on values.
    on_host = torch.cat([each.flatten() for each in rows]).cpu()
    pairs, counts = on_host.unique(return_counts=True)  # sorted by query, then by object
    pairs = pairs[counts.argsort(descending=True, stable=True)]
    pairs = pairs[(pairs // objects).argsort(stable=True)]  # by query, the most frequent object first
    pairs = pairs[(pairs // objects).diff(prepend=pairs.new_full((1,), -1)) > 0]  # the first of each query
    queries = pairs // objects
    packed = torch.stack([queries // num_queries, queries % num_queries, pairs % objects])
    image, query, object_ = packed.to(matchings[0].image.device, non_blocking=True)
    return Matches(image=image, query=query[None], object=object_[None])
