"""The boxes that each object query predicts over a dataset, as in figure 7 of the DETR paper.

Carion et al. (2020), "End-to-End Object Detection with Transformers", section 4.3: every learned query specialises in
certain areas and box sizes.
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
from querybox.files import atomic
from querybox.html import data_url, render
from querybox.inference.optimized_model import OptimizedModel
from querybox.inference.predict import batch_by_shape, effective_batch_size, prepare, run_batch
from querybox.inference.sources import Frame
from querybox.modules.detector import DetectionTransformer
from querybox.plotting import default_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL = 0.01
"""Boxes with less than this share of the image's area are small: a square of less than a tenth of its sides."""
# Kinds differ in the shape of the mark; the colours, of Okabe and Ito, are distinct with any colour vision.
KINDS = (("small", ".", "#009e73"), ("wide", "_", "#d55e00"), ("tall", "|", "#0072b2"))
SUFFIXES = {".png": "Software", ".svg": "Creator", ".pdf": "Creator"}
"""Suffixes of pictures, and the field of their metadata for the program that wrote them."""
SHOWN = 20
COLUMNS = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryView:
    """What every query predicted in every image of a dataset. N images, Q queries."""

    boxes: Float[Tensor, "N Q 4"]
    """Boxes of the last layer, whatever their score: cxcywh in 0-1 of the image."""
    scores: Float[Tensor, "N Q"]
    """Score of the best class, 0-1."""
    sizes: Int[Tensor, "N 2"]
    """(height, width) of each image in pixels."""
    proposed: bool
    """Whether the queries are the encoder's proposals, which differ between images (two-stage, DINO): query n is then
    the nth best proposal, and has no area of its own."""

    @property
    def ranking(self) -> list[int]:
        """The queries by their mean score, highest first."""
        return self.scores.mean(0).argsort(descending=True, stable=True).tolist()

    @property
    def kinds(self) -> Int[Tensor, "N Q"]:
        """Kind of each box: 0 small (below 1 % of the image's area), else 1 wide (or square) or 2 tall, in pixels."""
        width, height = self.boxes[..., 2], self.boxes[..., 3]
        tall = height * self.sizes[:, :1] > width * self.sizes[:, 1:]
        return torch.where(width * height < SMALL, 0, torch.where(tall, 2, 1))

    @default_style()
    def save(self, path: str | Path, queries: int = SHOWN) -> None:
        """Draw a panel for each of the queries with the highest mean score, with a mark at the centre of each box.

        Args:
            path: A .png, .svg or .pdf file.
            queries: Number of panels.

        Raises:
            ConfigError: The path has another suffix, or `queries` is less than 1.
        """
        check_picture(path, queries)
        suffix = Path(path).suffix.lower()
        with atomic(Path(path)) as temporary:
            draw_panels(self, self.ranking[:queries]).savefig(
                temporary, dpi=100, format=suffix[1:], metadata={SUFFIXES[suffix]: "querybox"}
            )

    @default_style()
    def _repr_html_(self) -> str:
        """Show the panels in Jupyter."""
        file = io.BytesIO()
        draw_panels(self, self.ranking[:SHOWN]).savefig(file, format="png", dpi=80)
        url = data_url(file.getvalue(), "png")
        return render("notebook/queries.html", heading=heading(self), url=url)


def check_picture(path: str | Path, queries: int) -> None:
    """Check the file and the number of panels of a view of queries.

    Raises:
        ConfigError: The path has another suffix than `SUFFIXES`, or `queries` is less than 1.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"{path}: a view of queries is drawn as .png, .svg or .pdf; use one of these suffixes"
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
    """Collect the predictions of every query in every image of a dataset.

    Args:
        detector: The model.
        data: The images; their annotations are not used.
        batch_size: Images per forward pass, on an accelerator; it does not change the result.
        callback: Called with each image once it has been processed, e.g. to show progress.

    Raises:
        ImageError: An image cannot be read.
    """
    engine = OptimizedModel(detector)
    boxes: dict[int, Tensor] = {}  # by index of the image: batches hold images of one shape
    scores: dict[int, Tensor] = {}
    pixel_range = engine.preprocessing.pixel_range
    frames = (
        Frame(source=str(record.file), pixels=read_pixels(record, pixel_range=pixel_range))
        for record in data.images
    )
    inputs = prepare(frames, engine.preprocessing)
    for batch in batch_by_shape(inputs, effective_batch_size(engine, batch_size)):
        answers = run_batch(engine, batch)
        best = answers.scores().amax(-1)  # [B, Q]
        for row, given in enumerate(batch):
            boxes[given.position], scores[given.position] = answers.boxes[row].float().cpu(), best[row].cpu()
            callback(data.images[given.position])
    indices = range(len(data.images))
    return QueryView(
        boxes=torch.stack([boxes[index] for index in indices]),
        scores=torch.stack([scores[index] for index in indices]),
        sizes=torch.tensor([[record.height, record.width] for record in data.images]),
        proposed=detector.proposes_queries,
    )


def draw_panels(view: QueryView, queries: Sequence[int]) -> Figure:
    """Draw a panel for each query, in the given order."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = math.ceil(len(queries) / COLUMNS)
    figure: Any = Figure(figsize=(2 * COLUMNS, 2.2 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    boxes, kinds, scores = view.boxes.numpy(), view.kinds.numpy(), view.scores.mean(0).tolist()
    word = "proposal" if view.proposed else "query"
    for index, axes in enumerate(panels):
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")  # y down, as in images
        if index >= len(queries):
            axes.set_axis_off()
            continue
        query = queries[index]
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
    """Return the heading of the figure."""
    of = "each of the encoder's proposals, by rank," if view.proposed else "each query"
    return f"Centres of the boxes of {of} in {len(view.boxes):,} images, and its mean score"
