"""``querybox trace``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querybox.cli.model import load_detector
from querybox.cli.streams import print_json
from querybox.cli.tables import table

if TYPE_CHECKING:
    from rich.table import Table

    from querybox.inspect import Comparison, Trace

MOST_OBJECTS = 12  # columns of a cost matrix that a terminal can show


def trace(
    image: Path,
    /,
    *,
    model: Path,
    annotations: str | None = None,
    split: str | None = None,
    queries: int = 5,
    json: bool = False,
    allow_network: bool = False,
) -> None:
    """Trace one image through a model: every stage with its shape, range and time.

    With annotations, also the matching and its costs in every decoder layer, and all losses.

    ```
    querybox trace a.jpg --model run
    querybox trace photos/images/a.jpg --model run --annotations photos/ --split val
    querybox trace a.jpg --model detr-r50.pth --json | jq '.layers[-1].scores'
    ```

    Args:
        image: The image.
        model: A checkpoint of any layout, or a run folder: its best model, or else its last.
        annotations: A dataset that has the image: COCO, Pascal VOC, YOLO or the format of an annotation tool; or the
            URL of shards, in which it is found by its name.
        split: Split of the dataset, such as val; required if it has several.
        queries: How many queries to show, the best first.
        json: Print all of it as JSON instead of tables.
        allow_network: Open the URLs of shards that the dataset is, or that its file has.
    """
    from querybox.data import read_dataset
    from querybox.inspect import trace as follow
    from querybox.inspect.annotated import find_record, trace_record
    from querybox.terminal import Console

    detector = load_detector(model)
    if annotations is None:
        traced = follow(detector, image)
    else:
        data = read_dataset(annotations, split, allow_network=allow_network)
        traced = trace_record(detector, find_record(image, data), data)
    if json:
        print_json(traced.to_dict())
        return
    Console().print(*tables(traced, queries))


def tables(traced: Trace, queries: int) -> Iterator[Table]:
    """Show a trace."""
    from querybox.inspect.stages import HEADS

    yield table(traced.source or "stages", HEADS, (stage.row() for stage in traced.stages), numeric=[4, 5, 6])
    yield predictions_table(traced, traced.ranking[:queries])
    if (comparison := traced.comparison) is not None:
        yield matching_table(traced, comparison)
        for layer in range(len(comparison.cost)):
            yield costs_table(comparison, layer)
        yield losses_table(comparison)


def predictions_table(traced: Trace, queries: Sequence[int]) -> Table:
    """Show the predictions of some queries after every decoder layer."""
    from querybox.boxes import to_xyxy

    height, width = traced.size
    sides = traced.boxes.new_tensor([width, height, width, height])
    boxes = (to_xyxy(traced.boxes) * sides).tolist()
    scores, labels = traced.scores.max(-1)
    masks = traced.masks
    covered: dict[int, list[float]] = {}
    if masks is not None:
        covered = {layer: masks.cells(layer, queries).float().mean((1, 2)).tolist() for layer in masks.layers}
    deviations = None if traced.edge_deviations is None else (traced.edge_deviations * sides).tolist()

    def rows(place: int) -> Iterator[list[str]]:
        query = queries[place]
        for layer in range(len(boxes)):
            name = traced.categories[int(labels[layer, query])].name
            edges = [f"{edge:.1f}" for edge in boxes[layer][query]]
            if deviations is not None:
                edges = [
                    f"{edge} ± {each:.1f}" for edge, each in zip(edges, deviations[layer][query], strict=True)
                ]
            first = str(query) if layer == 0 else ""
            mask = [f"{covered[layer][place]:.1%}" if layer in covered else ""] if masks else []
            yield [first, str(layer + 1), name, f"{scores[layer, query]:.3f}", *edges, *mask]

    spread = "" if deviations is None else ", ± standard deviation of each edge"
    area = ", masks in % of its area" if masks else ""
    title = f"the best {len(queries)} queries; boxes in pixels of the image{area}{spread}"
    heads = [
        "query",
        "layer",
        "class",
        "score",
        "left",
        "top",
        "right",
        "bottom",
        *(["mask"] if masks else []),
    ]
    return table(title, heads, *map(rows, range(len(queries))), numeric=range(3, len(heads)))


def matching_table(traced: Trace, comparison: Comparison) -> Table:
    """Show which query is matched to each object, and the terms of its cost."""

    def rows(index: int, label: int) -> Iterator[list[str]]:
        for layer, query in enumerate(comparison.matched[:, index].tolist()):
            first = [str(index), traced.categories[label].name] if layer == 0 else ["", ""]
            values = [*comparison.terms.values(), comparison.cost]
            costs = [number(value[layer, index, query].item()) for value in values] if query >= 0 else []
            yield [*first, str(layer + 1), str(query) if query >= 0 else "none", *costs]

    sections = [rows(index, label) for index, label in enumerate(comparison.target.labels.tolist())]
    heads = ["object", "class", "layer", "query", *comparison.terms, "cost"]
    return table("matching", heads, *sections, numeric=range(4, len(heads)))


def costs_table(comparison: Comparison, layer: int) -> Table:
    """Show what every object would cost with the queries that are matched in this layer."""
    objects = comparison.cost.shape[1]
    matched = [query for query in comparison.matched[layer].tolist() if query >= 0][:MOST_OBJECTS]
    some = f", the first {MOST_OBJECTS} of them (--json has all)" if objects > MOST_OBJECTS else ""
    title = f"cost of objects with the queries that are matched, layer {layer + 1}{some}"
    heads = ["object", *(f"query {query}" for query in matched)]
    rows = [
        [str(index), *(number(comparison.cost[layer, index, query].item()) for query in matched)]
        for index in range(min(objects, MOST_OBJECTS))
    ]
    return table(title, heads, rows, numeric=range(1, len(heads)))


def losses_table(comparison: Comparison) -> Table:
    """Show the losses of each layer under the names of the criterion."""
    last = len(comparison.cost)
    prefixes = {"enc_": "proposals", "pre_": "start boxes"}
    prefixes |= {f"d{layer - 1}.": str(layer) for layer in range(1, last)} | {"": str(last)}
    kinds = [name for name in comparison.losses if name.startswith("loss_")]  # those of the last layer
    losses = {
        layer: [comparison.losses.get(prefix + kind) for kind in kinds]
        for prefix, layer in prefixes.items()
        if prefix + kinds[0] in comparison.losses
    }
    rows = [
        [layer, *map(number, values), number(sum(filter(None, values)))] for layer, values in losses.items()
    ]
    return table("losses", ["layer", *kinds, "sum"], rows, numeric=range(1, len(kinds) + 2))


def number(value: float | None) -> str:
    """Return the text of a cost or a loss; empty for one that a layer does not have."""
    return "" if value is None else f"{value:.6g}"
