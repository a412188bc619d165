"""Stages 0 to 4: from files to features with positional encodings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from figures.sheet import CARD, COLOURS, DASHES, INK, frame, mark, on_unit, sheet, show
from figures.specimen import Specimen
from querybox.inspect import Trace
from querybox.modules.position import SinePositionEncoding

PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 2}
"""Background of text on a grid."""


def images(made: Specimen) -> Figure:
    """Stage 0: a batch of augmented copies, padded to one size, with their boxes."""
    figure, grid = sheet(5.6, nrows=2, ncols=2)
    batch = made.batch
    limits = torch.tensor(batch.pixels.shape[-2:])
    for axes, pixels, size, target in zip(grid.flat, batch.pixels, batch.sizes, batch.targets, strict=True):
        height, width = (size / limits).tolist()
        show(axes, pixels, f"{size[0]} x {size[1]}")
        hatch_padding(axes, width, height)
        scale = torch.tensor([width, height, width, height])
        for box, label in zip((target.boxes * scale).tolist(), target.labels.tolist(), strict=True):
            frame(axes, box, COLOURS[label], dashes=DASHES[label])
    names = [category.name for category in made.trace.categories]
    seen = sorted({label for target in batch.targets for label in target.labels.tolist()})
    lines: list[Artist] = [
        Line2D([], [], color=COLOURS[at], linestyle=DASHES[at], linewidth=2) for at in seen
    ]
    lines.append(Rectangle((0, 0), 1, 1, facecolor=CARD, edgecolor=INK, hatch="///"))
    figure.legend(lines, [*(names[at] for at in seen), "padding"], loc="outside lower center", ncols=4)
    return figure


def hatch_padding(axes: Axes, width: float, height: float) -> None:
    """Hatch the padding to the right of and below an image, whose size is given in 0-1 of the batch's size."""
    for x, y, w, h in ((width, 0, 1 - width, 1), (0, height, width, 1 - height)):
        if w > 0 and h > 0:
            axes.add_patch(Rectangle((x, y), w, h, facecolor=CARD, edgecolor=INK, hatch="///", linewidth=0))


def features(made: Specimen) -> Figure:
    """Stage 1: the channels of the feature map with the highest variance over the image."""
    figure, grid = sheet(3.6, nrows=2, ncols=3)
    show(grid.flat[0], made.trace.pixels, "image")
    maps = stage(made.trace, "features")[0]  # [channels, h, w]
    chosen = maps.flatten(1).std(1).argsort(descending=True)[:5].sort().values
    for axes, channel in zip(grid.flat[1:], chosen.tolist(), strict=True):
        on_unit(axes, maps[channel].numpy(), f"channel {channel}", cmap="cividis")
    return figure


def padding(made: Specimen) -> Figure:
    """Stage 2: the padding mask at the resolution of the image and of the feature map."""
    figure, (left, right) = sheet(2.7, ncols=2)
    for axes, name in (left, "image"), (right, "map"):
        mask = stage(made.padded, f"padding mask of the {name}")[0]
        rows, columns = mask.shape
        on_unit(axes, mask.numpy(), f"of the {name}: {rows} x {columns}", cmap="Greys", vmin=0, vmax=1.6)
        height, width = (~mask).sum(0).max().item() / rows, (~mask).sum(1).max().item() / columns
        for text, x, y in (("image", width / 2, height / 2), ("padding", (1 + width) / 2, height / 2)):
            axes.text(
                x, y, text, ha="center", va="center", rotation=90 if text == "padding" else 0, bbox=PLATE
            )
        if name == "map":
            axes.hlines([row / rows for row in range(rows + 1)], 0, 1, color=INK, linewidth=0.3)
            axes.vlines([column / columns for column in range(columns + 1)], 0, 1, color=INK, linewidth=0.3)
        axes.spines[:].set_visible(True)
        axes.set_anchor("N")
    return figure


def projection(made: Specimen) -> Figure:
    """Stage 3: the similarity of one cell's feature to all others, before and after the projection."""
    figure, (left, right) = sheet(2.5, ncols=2)
    rows, columns = made.trace.grids[0]
    x, y = made.comparison.target.boxes[largest(made), :2].tolist()
    cell = int(y * rows) * columns + int(x * columns)
    for axes, name in (left, "features"), (right, "projection"):
        maps = stage(made.trace, name)[0]
        picture = on_unit_scale(axes, cosine_similarity(maps, cell), f"{name}: {maps.shape[0]} channels")
        mark(axes, (int(x * columns) + 0.5) / columns, (int(y * rows) + 0.5) / rows)
    figure.colorbar(picture, ax=[left, right], shrink=0.75, label="cosine similarity")
    return figure


def positions(made: Specimen) -> Figure:
    """Stage 4: sines of the columns, and similarities of cells, as in the paper and in the shipped model."""
    figure, grid = sheet(5.2, nrows=2, ncols=2)
    rows, columns = made.trace.grids[0]
    paper = SinePositionEncoding(256)(torch.zeros(1, rows, columns, dtype=torch.bool))[0]  # [256, h, w]
    cell = rows // 2 * columns + columns // 2
    encodings = {"the paper's": paper, "the shipped model's": stage(made.trace, "positional encoding")[0]}
    for (top, bottom), (name, encoding) in zip(grid.T, encodings.items(), strict=True):
        sines = encoding[
            len(encoding) // 2 :: 2, rows // 2
        ]  # [D / 4, w]: the second half of the features, for x
        top.imshow(sines.numpy(), aspect="auto", cmap="cividis", interpolation="nearest")
        top.set_title(name)
        top.set_xlabel("column")
        similar = on_unit_scale(bottom, cosine_similarity(encoding, cell), "")
        mark(bottom, (columns // 2 + 0.5) / columns, (rows // 2 + 0.5) / rows)
    grid[0, 0].set_ylabel("sine")
    figure.colorbar(grid[0, 0].images[0], ax=grid[0].tolist(), label="value", ticks=[])
    figure.colorbar(similar, ax=grid[1].tolist(), label="cosine similarity")
    return figure


def on_unit_scale(axes: Axes, values: Float[Tensor, "h w"], title: str) -> AxesImage:
    """Show similarities in -1 to 1."""
    on_unit(axes, values.numpy(), title, cmap="cividis", vmin=-1, vmax=1)
    return axes.images[0]


def cosine_similarity(maps: Float[Tensor, "D h w"], cell: int) -> Float[Tensor, "h w"]:
    """Return the cosine similarity of every cell to the given one."""
    vectors = F.normalize(maps.flatten(1), dim=0)  # [D, S]
    return (vectors[:, cell] @ vectors).unflatten(0, maps.shape[1:])


def stage(trace: Trace, name: str) -> Tensor:
    """Return the value of the stage with this name."""
    return next(stage.value for stage in trace.stages if stage.name == name)


def largest(made: Specimen) -> int:
    """Return the index of the object with the largest box, the white cell."""
    return int(made.comparison.target.boxes[:, 2:].prod(1).argmax())
