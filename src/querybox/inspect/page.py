"""The inspector: one HTML file for looking at the traces of some images.

The file holds all that it shows: numbers as deflated arrays in base64, attention in 255 steps of each map's peak.
Its content security policy lets it load nothing and run only its own script.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from querybox.errors import ConfigError
from querybox.files import write_text
from querybox.html import jpeg_url, render
from querybox.inspect.attention import AttentionMaps, AttentionPoints, LayerAttention
from querybox.inspect.comparison import Comparison
from querybox.inspect.masks import QueryMasks
from querybox.inspect.tracing import Trace
from querybox.mask_embeddings import MASK_STRIDE
from querybox.text import counted, to_json

CLASSES = 5
"""Most classes with scores per query."""
CROSS_BYTES = 5_100_000
"""Most bytes of an image's cross-attention, before compression: 100 queries at 800 x 1333 pixels and stride 32."""
ENCODER_BYTES = 1_500_000
"""Most bytes of each encoder layer of an image, before compression; larger maps keep every second or third cell."""
MAX_CELLS = 1200
"""With attention to points, the encoder cells are those of the finest feature map that has at most this many."""
MAX_BYTES = 500_000_000
"""Most bytes of a page: Chromium holds no text of more than 512 MiB."""
CHUNK = 128
"""Cells whose attention is computed at once."""


def write_page(
    path: str | Path,
    traces: Iterable[Trace],
    *,
    title: str = "Inspector",
    queries: int = 100,
    encoder_layers: Sequence[int] = (-1,),
) -> None:
    """Write the inspector page of some images.

    Args:
        path: The HTML file.
        traces: The images; they are consumed one at a time.
        title: Heading of the page.
        queries: How many queries per image: those with the highest scores, and all that are matched. With large feature
            maps, the attention of fewer queries is included, so that an image takes less than 10 MB.
        encoder_layers: Encoder layers whose attention is included, 0 is the first and -1 the last.

    Raises:
        ConfigError: There is no such encoder layer, or the page would have more than `MAX_BYTES`.
        DiskFullError: There is no room for the file.
    """
    images: list[dict[str, Any]] = []
    size = 0
    for trace in traces:
        images.append(image_data(trace, queries, encoder_layers))
        size += len(to_json(images[-1]))
        if size > MAX_BYTES:
            raise ConfigError(
                f"{path}: {counted(len(images), 'image')} take more than {MAX_BYTES / 1e6:g} MB, which browsers do not "
                "open; inspect fewer images or queries at a time"
            )
    data = {"title": title, "images": images}
    write_text(Path(path), render("inspector.html", title=title, data=data))


def image_data(trace: Trace, queries: int, encoder_layers: Sequence[int]) -> dict[str, Any]:
    """Return what the page shows of one image."""
    chosen = select_queries(trace, queries)
    scores, labels = trace.scores[:, chosen].topk(min(CLASSES, trace.scores.shape[2]))  # [L, N, K]
    values = {
        "boxes": trace.boxes,
        "no_object": trace.no_object_scores,
        "edge_deviations": trace.edge_deviations,
    }
    height, width = trace.size
    return {
        "name": Path(trace.source).name or "image",
        "width": width,
        "height": height,
        "picture": jpeg_url(Image.fromarray(trace.pixels.permute(1, 2, 0).numpy())),
        "classes": [category.name for category in trace.categories],
        "queries": chosen,
        "labels": packed(labels, "u2"),
        "scores": packed(scores, "f4"),
        **{name: None if each is None else packed(each[:, chosen], "f4") for name, each in values.items()},
        "masks": None if trace.masks is None else masks_data(trace.masks, chosen),
        "cross": cross_attention_data(trace, chosen),
        "encoder": [
            {"layer": layer, **encoder_attention_data(trace.encoder_attention[layer], trace.grids)}
            for layer in layer_indices(encoder_layers, len(trace.encoder_attention))
        ],
        "objects": objects_data(trace.comparison, chosen) if trace.comparison else None,
    }


def select_queries(trace: Trace, count: int) -> list[int]:
    """Return the `count` queries with the highest scores and all that are matched in any layer, best first."""
    matched = trace.comparison.matched.unique().tolist() if trace.comparison else []
    selected = {*matched, *trace.ranking[:count]}
    return [query for query in trace.ranking if query in selected]


def queries_with_maps(trace: Trace, chosen: list[int], attention: AttentionMaps) -> list[int]:
    """Return the queries whose attention maps fit into `CROSS_BYTES`; those matched in the last layer come first."""
    room = CROSS_BYTES // (
        attention.module.heads * attention.key.shape[1] * len(trace.decoder_cross_attention)
    )
    matched = set(trace.comparison.matched[-1].tolist()) if trace.comparison else set()
    kept = sorted(chosen, key=lambda query: query not in matched)[: max(1, room)]
    return [query for query in chosen if query in kept]


def layer_indices(wanted: Sequence[int], count: int) -> list[int]:
    """Return the indices of encoder layers from 0, sorted; empty if the encoder has no layers.

    Raises:
        ConfigError: There is no such layer.
    """
    if count and (unknown := [layer for layer in wanted if not -count <= layer < count]):
        raise ConfigError(
            f"the encoder has {count} layers; got layer {unknown[0]}, expected 0 to {count - 1}"
        )
    return sorted({layer % count for layer in wanted}) if count else []


def cross_attention_data(trace: Trace, chosen: list[int]) -> dict[str, Any] | None:
    """Return the cross-attention of some queries in every decoder layer and head; None if it is not known."""
    layers = trace.decoder_cross_attention
    maps = [attention for attention in layers if isinstance(attention, AttentionMaps)]
    if maps:
        included = queries_with_maps(trace, chosen, maps[0])
        steps, peaks = zip(*(quantised(attention.weights(included)) for attention in maps), strict=True)
        return {
            "grid": trace.grids[0],
            "queries": [chosen.index(query) for query in included],
            "steps": packed(torch.stack(steps), "u1"),
            "peaks": packed(torch.stack(peaks), "f4"),
        }
    points = [attention for attention in layers if isinstance(attention, AttentionPoints)]
    return points_data([attention.points(chosen) for attention in points]) if points else None


def encoder_attention_data(attention: LayerAttention, grids: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the self-attention of the cells of one encoder layer; maps are averaged over the heads."""
    if isinstance(attention, AttentionMaps):
        # The only feature map, or the coarsest one (RT-DETR).
        (height, width), cells = grids[-1], attention.key.shape[1]
        stride = 1
        while -(-height // stride) * -(-width // stride) * cells > ENCODER_BYTES:
            stride += 1
        rows = torch.arange(cells).view(height, width)[::stride, ::stride]
        chunks = [attention.weights(part.tolist()).mean(0) for part in rows.flatten().split(CHUNK)]
        steps, peaks = quantised(torch.cat(chunks))
        return {
            "cells": list(rows.shape),
            "grid": grids[-1],
            "steps": packed(steps, "u1"),
            "peaks": packed(peaks, "f4"),
        }
    sizes = [height * width for height, width in grids]
    level = next((level for level, size in enumerate(sizes) if size <= MAX_CELLS), len(sizes) - 1)
    first = sum(sizes[:level])
    return {"cells": grids[level], **points_data([attention.points(slice(first, first + sizes[level]))])}


def points_data(
    layers: Sequence[tuple[Float[Tensor, "heads N K 2"], Float[Tensor, "heads N K"]]],
) -> dict[str, Any]:
    """Return sampled locations, in 65535 steps from -0.5 to 1.5 of the image's sides, and their attention weights."""
    locations = torch.stack([locations for locations, _ in layers])  # [layers, heads, N, K, 2]
    steps, peaks = quantised(torch.stack([weights for _, weights in layers]))
    return {
        "points": packed((locations.clamp(-0.5, 1.5) + 0.5) / 2 * 65535, "u2"),
        "steps": packed(steps, "u1"),
        "peaks": packed(peaks, "f4"),
    }


def quantised(
    weights: Float[Tensor, "*shape S"],
) -> tuple[Float[Tensor, "*shape S"], Float[Tensor, "*shape"]]:
    """Return weights in 255 steps of the maximum of their row, and the maximum."""
    peaks = weights.amax(-1)
    return 255 * weights / peaks.clamp(min=1e-12)[..., None], peaks


def masks_data(masks: QueryMasks, queries: list[int]) -> dict[str, Any]:
    """Return the masks of some queries in the layers that have them, a bit for each cell, rows from the top.

    ``extent`` is the height and width of the grid, in those of the image.
    """
    height, width = masks.grid
    cells = torch.stack([masks.cells(layer, queries) for layer in masks.layers])  # [L, N, h, w]
    bits = torch.from_numpy(np.packbits(cells.flatten(2).numpy(), axis=2))
    return {
        "layers": list(masks.layers),
        "grid": [height, width],
        "extent": [height * MASK_STRIDE / masks.size[0], width * MASK_STRIDE / masks.size[1]],
        "bits": packed(bits, "u1"),
    }


def objects_data(comparison: Comparison, queries: list[int]) -> dict[str, Any]:
    """Return the objects, their matching costs with some queries, and the losses."""
    indices = {query: index for index, query in enumerate(queries)} | {-1: -1}
    matched = [[indices[query] for query in layer] for layer in comparison.matched.tolist()]
    return {
        "labels": comparison.target.labels.tolist(),
        "boxes": comparison.target.boxes.tolist(),
        "terms": {name: packed(values[..., queries], "f4") for name, values in comparison.terms.items()},
        "cost": packed(comparison.cost[..., queries], "f4"),
        "matched": matched,
        "losses": dict(comparison.losses),
    }


def packed(values: Tensor, kind: str) -> dict[str, Any]:
    """Return an array for JSON: little-endian, deflated, in base64; integer kinds are rounded."""
    array = values.cpu().numpy()
    array = (array if kind == "f4" else np.rint(array)).astype(f"<{kind}")
    data = base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
    return {"kind": kind, "shape": list(array.shape), "data": data}
