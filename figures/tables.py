"""The tables of shapes on the pages, written from a trace between two comments."""

from __future__ import annotations

import re

from querybox.inspect import Stage, Trace

PLACE = re.compile(r"(<!-- traced, stage (\d+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHAPES = {
    "images": "B 3 H W",
    "features": "B channels h w",
    "padding mask of the image": "B H W",
    "padding mask of the map": "B h w",
    "projection": "B D h w",
    "positional encoding": "B D h w",
    "encoder layer": "B S D",
    "memory": "B S D",
    "queries: content": "B Q D",
    "queries: position": "B Q D",
    "decoder layer": "B Q D",
    "logits": "L B Q K",
    "boxes": "L B Q 4",
    "cost, layer": "G Q",
    "query of each object": "L G",
    "object of each query": "L Q",
    "losses": "all",
    "scores": "Q",
    "labels": "Q",
    "boxes in pixels": "Q 4",
}
"""Axes of each value of a trace, by name without layer number, in the notation of docs/anatomy."""


def update_tables(page: str, trace: Trace) -> str:
    """Return the text of a page with updated tables."""
    return PLACE.sub(lambda place: f"{place[1]}{table(trace, int(place[2]))}{place[3]}", page)


def table(trace: Trace, number: int) -> str:
    """Return the table of one stage."""
    rows = [
        f"| {stage.name} | `[{', '.join(words(stage))}]` | {' x '.join(map(str, stage.shape))} | {stage.dtype} |\n"
        for stage in trace.stages
        if stage.number == number
    ]
    return "".join(["| value | shape | here | type |\n|---|---|---|---|\n", *rows])


def words(stage: Stage) -> list[str]:
    """Return the name of each axis of a stage's value."""
    return SHAPES[re.sub(r" \d+$", "", stage.name)].split()
