"""Where each object query looks: the boxes of all its answers over a dataset, as in figure 7 of the DETR paper.

Carion et al. (2020), "End-to-End Object Detection with Transformers", section 4.3: every learned query comes to look at
some places and sizes more than at others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querybox.data import DetectionData, ImageRecord, read_pixels
from querybox.errors import ConfigError
from querybox.fast import optimize
from querybox.html import data_url, render
from querybox.inference.predict import answer, equal_shapes, prepare, together
from querybox.inference.sources import Frame
from querybox.modules.detector import DetectionTransformer
from querybox.modules.queries import MixedQueries, ProposedQueries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = 0.01
"""A box of less than this share of the image's area is small: of less than a tenth of its sides, roughly."""
# Marks that tell the kinds apart by shape, in colours of Okabe and Ito that tell them apart with any colour vision.
KINDS = (("small", ".", "#009e73"), ("wide", "_", "#d55e00"), ("tall", "|", "#0072b2"))
SUFFIXES = (".png", ".svg", ".pdf")
SHOWN = 20
COLUMNS = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryView:
    """What every query answered in every image of a dataset. N images, Q queries."""

    boxes: Float[Tensor, "N Q 4"]
    """The last layer's boxes, whatever they score: cxcywh in 0-1 of the image."""
    scores: Float[Tensor, "N Q"]
    """Of the likeliest class, 0-1."""
    sizes: Int[Tensor, "N 2"]
    """(height, width) of each image in pixels."""
    proposed: bool
    """Whether the queries are the encoder's proposals, made anew for every image (two-stage, DINO): then query n is
    the nth best proposal, and no place is its own."""

    @property
    def ranking(self) -> list[int]:
        """The queries, that with the highest mean score first."""
        return self.scores.mean(0).argsort(descending=True, stable=True).tolist()

    @property
    def kinds(self) -> Int[Tensor, "N Q"]:
        """What each box is, 0 small (below 1 % of the image's area), 1 wide (or square), 2 tall, in pixels."""
        width, height = self.boxes[..., 2], self.boxes[..., 3]
        tall = height * self.sizes[:, :1] > width * self.sizes[:, 1:]
        return torch.where(width * height < SMALL, 0, torch.where(tall, 2, 1))

    def save(self, path: str | Path, queries: int = SHOWN) -> None:
        """Draw a panel for each of some queries, those with the highest mean score: a mark at the centre of each box.

        Args:
            path: A .png, .svg or .pdf file.
            queries: How many.

        Raises:
            ConfigError: The path has another suffix, or `queries` is less than 1.
        """
        check_picture(path, queries)
        draw_panels(self, self.ranking[:queries]).savefig(path, dpi=100)

    def _repr_html_(self) -> str:
        """Show the panels in Jupyter."""
        file = io.BytesIO()
        draw_panels(self, self.ranking[:SHOWN]).savefig(file, format="png", dpi=80)
        url = data_url(file.getvalue(), "png")
        return render("notebook/queries.html", heading=heading(self), url=url)


def check_picture(path: str | Path, queries: int) -> None:
    """Raise ConfigError unless a view of so many queries can be drawn to `path`."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{path}: a view of queries is drawn as .png, .svg or .pdf; give one of these suffixes"
        )
    if queries < 1:
        raise ConfigError(f"the view of queries got queries={queries}; expected 1 or more")


@torch.inference_mode()
def query_view(
    detector: DetectionTransformer,
    data: DetectionData,
    *,
    batch_size: int = 8,
    callback: Callable[[ImageRecord], object] = lambda _: None,
) -> QueryView:
    """Ask every query about every image of a dataset.

    Args:
        detector: The model.
        data: The images; what is labelled in them does not matter.
        batch_size: Images in one forward pass, on an accelerator; it does not change the result.
        callback: Called with each image once it has been processed, e.g. to show progress.

    Raises:
        ImageError: An image cannot be read.
    """
    engine = optimize(detector)
    boxes: dict[int, Tensor] = {}  # by the image's place: those of equal shape are answered together
    scores: dict[int, Tensor] = {}
    frames = (Frame(source=str(record.path), pixels=read_pixels(record)) for record in data.images)
    for batch in equal_shapes(prepare(frames, engine.preprocessing), together(engine, batch_size)):
        answers = answer(engine, batch)
        best = answers.scores().amax(-1)  # [B, Q]
        for row, given in enumerate(batch):
            boxes[given.position], scores[given.position] = answers.boxes[row].float().cpu(), best[row].cpu()
            callback(data.images[given.position])
    places = range(len(data.images))
    return QueryView(
        boxes=torch.stack([boxes[place] for place in places]),
        scores=torch.stack([scores[place] for place in places]),
        sizes=torch.tensor([[record.height, record.width] for record in data.images]),
        proposed=isinstance(detector.queries, ProposedQueries | MixedQueries),
    )


def draw_panels(view: QueryView, queries: Sequence[int]) -> Figure:
    """Draw a panel for each query, in their order."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = math.ceil(len(queries) / COLUMNS)
    figure: Any = Figure(figsize=(2 * COLUMNS, 2.2 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    boxes, kinds, scores = view.boxes.numpy(), view.kinds.numpy(), view.scores.mean(0).tolist()
    word = "proposal" if view.proposed else "query"
    for place, axes in enumerate(panels):
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")  # y down, as in images
        if place >= len(queries):
            axes.set_axis_off()
            continue
        query = queries[place]
        axes.set_title(f"{word} {query}: {scores[query]:.2f}", fontsize=9)
        for number, (_, marker, colour) in enumerate(KINDS):
            x, y = boxes[kinds[:, query] == number, query, :2].T
            axes.plot(x, y, marker, color=colour, markersize=7, alpha=0.8)
    marks = [
        Line2D([], [], linestyle="", marker=marker, color=colour, markersize=9, label=f"{name} box")
        for name, marker, colour in KINDS
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(KINDS), frameon=False)
    figure.suptitle(heading(view), fontsize=10)
    return figure


def heading(view: QueryView) -> str:
    """Say what the picture is of."""
    of = "each of the encoder's proposals, by rank," if view.proposed else "each query's answers"
    return f"Centres of the boxes of {of} in {len(view.boxes):,} images; its mean score"
