"""The inspector: one HTML file in which a person looks into the traces of some images.

All that the page shows is in the file: numbers as deflated arrays in base64, attention in 256 steps of each map's
greatest weight. Its policy lets it load nothing and run nothing but its own script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from querybox.errors import ConfigError
from querybox.inspect.attention import AttentionMaps, AttentionPoints, Look
from querybox.inspect.comparison import Comparison
from querybox.inspect.tracing import Trace

SCRIPTS = ("data.js", "draw.js", "page.js")
CLASSES = 5
"""How many of its likeliest classes are told of a query."""
CROSS_BYTES = 5_100_000
"""For the cross-attention of an image before it is deflated: of 100 queries at 800 x 1333 pixels and stride 32."""
ENCODER_BYTES = 1_500_000
"""For each encoder layer of an image, likewise: where cells are more, only every second or third one is told of."""
MOST_PLACES = 1200
"""The finest feature map with so many cells is the one whose cells are told of, where these look at points."""
CHUNK = 128
"""Cells whose attention is in memory at once."""


def write_page(
    path: str | Path,
    traces: Iterable[Trace],
    *,
    title: str = "See inside",
    queries: int = 100,
    encoder_layers: Sequence[int] = (-1,),
) -> None:
    """Write the inspector of some images.

    Args:
        path: The HTML file.
        traces: The images, one after another.
        title: What the page says it is about.
        queries: Of how many queries an image to tell: those with the best scores, and those that are matched. Of
            feature maps with many cells fewer have their attention told of, so that an image stays below 10 MB.
        encoder_layers: Which encoder layers' attention to tell, 0 is the first and -1 the last.

    Raises:
        ConfigError: There is no such encoder layer.
    """
    images = [image_data(trace, queries, encoder_layers) for trace in traces]
    data = json.dumps({"title": title, "images": images}, ensure_ascii=False, allow_nan=False)
    folder = files("querybox.inspect") / "page"
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "POLICY": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "TITLE": escape(title),
        "STYLE": (folder / "page.css").read_text(encoding="utf-8"),
        "DATA": data.replace("<", "\\u003c"),  # else a class's name could end the script
        "SCRIPT": script,
    }
    page = (folder / "page.html").read_text(encoding="utf-8")
    pieces = page.split("%%")  # every second one is the name of a part: parts are never searched themselves
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    Path(path).write_text("".join(pieces), encoding="utf-8")


def image_data(trace: Trace, queries: int, encoder_layers: Sequence[int]) -> dict[str, Any]:
    """Return what the page shows of one image."""
    chosen = choose_queries(trace, queries)
    scores, labels = trace.scores[:, chosen].topk(min(CLASSES, trace.scores.shape[2]))  # [L, N, K]
    height, width = trace.size
    return {
        "name": Path(trace.source).name or "image",
        "width": width,
        "height": height,
        "picture": picture(trace.pixels),
        "classes": [category.name for category in trace.categories],
        "queries": chosen,
        "labels": packed(labels, "u2"),
        "scores": packed(scores, "f4"),
        "no_object": None
        if trace.no_object_scores is None
        else packed(trace.no_object_scores[:, chosen], "f4"),
        "boxes": packed(trace.boxes[:, chosen], "f4"),
        "cross": cross_data(trace, chosen),
        "encoder": [
            {"layer": layer, **cells_data(trace.encoder_attention[layer], trace.grids)}
            for layer in pick_layers(encoder_layers, len(trace.encoder_attention))
        ],
        "objects": objects_data(trace.comparison, chosen) if trace.comparison else None,
    }


def choose_queries(trace: Trace, most: int) -> list[int]:
    """Return the queries to tell of, best first: those that are matched in some layer, and the best of the others."""
    ranking = trace.ranking
    wanted = trace.comparison.matched.unique().tolist() if trace.comparison else []
    kept = {*wanted, *ranking[:most]}
    return [query for query in ranking if query in kept]


def queries_with_maps(trace: Trace, chosen: list[int], look: AttentionMaps) -> list[int]:
    """Return those of the chosen queries whose attention there is room for: first who is matched in the last layer."""
    room = CROSS_BYTES // (look.module.heads * look.key.shape[1] * len(trace.decoder_cross_attention))
    matched = set(trace.comparison.matched[-1].tolist()) if trace.comparison else set()
    kept = sorted(chosen, key=lambda query: query not in matched)[: max(1, room)]
    return [query for query in chosen if query in kept]


def pick_layers(wanted: Sequence[int], count: int) -> list[int]:
    """Return the encoder layers that are meant, in order; none where the encoder has none.

    Raises:
        ConfigError: There is no such layer.
    """
    if count and (unknown := [layer for layer in wanted if not -count <= layer < count]):
        raise ConfigError(
            f"the encoder has {count} layers; got layer {unknown[0]}, expected 0 to {count - 1}"
        )
    return sorted({layer % count for layer in wanted}) if count else []


def cross_data(trace: Trace, chosen: list[int]) -> dict[str, Any] | None:
    """Return where every layer's heads looked, for some queries; None where that is not known."""
    looks = trace.decoder_cross_attention
    maps = [look for look in looks if isinstance(look, AttentionMaps)]
    if maps:
        told = queries_with_maps(trace, chosen, maps[0])
        steps, peaks = zip(*(in_steps(look.weights(told)) for look in maps), strict=True)
        return {
            "grid": trace.grids[0],
            "queries": [chosen.index(query) for query in told],
            "steps": packed(torch.stack(steps), "u1"),
            "peaks": packed(torch.stack(peaks), "f4"),
        }
    points = [look for look in looks if isinstance(look, AttentionPoints)]
    return points_data([look.points(chosen) for look in points]) if points else None


def cells_data(look: Look, grids: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return where the cells of one encoder layer looked, on average over the heads where these have maps."""
    if isinstance(look, AttentionMaps):
        (height, width), cells = grids[0], look.key.shape[1]
        stride = 1
        while -(-height // stride) * -(-width // stride) * cells > ENCODER_BYTES:
            stride += 1
        rows = torch.arange(cells).view(height, width)[::stride, ::stride]
        chunks = [look.weights(part.tolist()).mean(0) for part in rows.flatten().split(CHUNK)]
        steps, peaks = in_steps(torch.cat(chunks))
        places = {"places": list(rows.shape), "grid": grids[0]}
        return {**places, "steps": packed(steps, "u1"), "peaks": packed(peaks, "f4")}
    sizes = [height * width for height, width in grids]
    level = next((level for level, size in enumerate(sizes) if size <= MOST_PLACES), len(sizes) - 1)
    first = sum(sizes[:level])
    return {"places": grids[level], **points_data([look.points(slice(first, first + sizes[level]))])}


def points_data(
    looks: Sequence[tuple[Float[Tensor, "heads N L P 2"], Float[Tensor, "heads N L P"]]],
) -> dict[str, Any]:
    """Return the points that were looked at: places in 65535 steps from half an image before it to half one after."""
    places = torch.stack([places.flatten(2, 3) for places, _ in looks])  # [layers, heads, N, L P, 2]
    steps, peaks = in_steps(torch.stack([weights.flatten(2) for _, weights in looks]))
    return {
        "points": packed((places.clamp(-0.5, 1.5) + 0.5) / 2 * 65535, "u2"),
        "steps": packed(steps, "u1"),
        "peaks": packed(peaks, "f4"),
    }


def in_steps(weights: Float[Tensor, "*shape S"]) -> tuple[Float[Tensor, "*shape S"], Float[Tensor, "*shape"]]:
    """Return weights in 255 steps of the greatest of their row, and that."""
    peaks = weights.amax(-1)
    return 255 * weights / peaks.clamp(min=1e-12)[..., None], peaks


def objects_data(comparison: Comparison, queries: list[int]) -> dict[str, Any]:
    """Return the objects, and what they cost with the queries that are told of."""
    places = {query: place for place, query in enumerate(queries)} | {-1: -1}
    matched = [[places[query] for query in layer] for layer in comparison.matched.tolist()]
    return {
        "labels": comparison.target.labels.tolist(),
        "boxes": comparison.target.boxes.tolist(),
        "terms": {name: packed(values[..., queries], "f4") for name, values in comparison.terms.items()},
        "cost": packed(comparison.cost[..., queries], "f4"),
        "matched": matched,
        "losses": dict(comparison.losses),
    }


def packed(values: Tensor, kind: str) -> dict[str, Any]:
    """Return an array as JSON can hold it: little-endian, deflated, in base64; whole numbers are rounded."""
    array = values.cpu().numpy()
    array = (array if kind == "f4" else np.rint(array)).astype(f"<{kind}")
    data = base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
    return {"kind": kind, "shape": list(array.shape), "data": data}


def picture(pixels: UInt8[Tensor, "3 h w"]) -> str:
    """Return an image as a JPEG in a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
