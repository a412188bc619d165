"""Object queries: the questions that the decoder asks of the image, one kind a class.

`LearnedQueries` are DETR's, `ConditionalQueries` Conditional DETR's, `PointQueries` Deformable DETR's,
`ProposedQueries` two-stage Deformable DETR's and `MixedQueries` DINO's; `PlacedQueries` begin spread over the image,
for a DETR that learns from few images.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from querybox.modules.encoder import cell_centres
from querybox.modules.heads import DeltaHead, IndependentClassHead
from querybox.modules.position import SinePositionEncoding, sine_boxes
from querybox.structures import Levels, Memory, Predictions, Queries, Shapes


class LearnedQueries(nn.Module):
    """The same learned questions for every image: each has a position of its own and starts with no content."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(count, width))

    def forward(self, memory: Memory) -> Queries:
        """Repeat the queries for each image of `memory`."""
        position = self.position.expand(memory.tokens.shape[0], -1, -1)  # [B, Q, D]
        return Queries(content=torch.zeros_like(position), position=position)


class PlacedQueries(nn.Module):
    """Learned queries that begin at points spread over the image, and know where they are."""

    def __init__(self, count: int, encoding: SinePositionEncoding) -> None:
        super().__init__()
        y, x = (2 * math.pi * spread_points(count)).unbind(1)
        position = encoding.encode(y, x)
        self.position = nn.Parameter(position)
        self.content = nn.Parameter(position / encoding.amplitude)

    def forward(self, memory: Memory) -> Queries:
        """Repeat the queries for each image of `memory`."""
        batch = memory.tokens.shape[0]
        return Queries(
            content=self.content.expand(batch, -1, -1), position=self.position.expand(batch, -1, -1)
        )


def spread_points(count: int) -> Float[Tensor, "Q 2"]:
    """Return (y, x) of points in 0-1, evenly spread for any count (the R2 sequence of M. Roberts, 2018)."""
    plastic = 1.32471795724474602596  # the real root of x^3 = x + 1
    steps = torch.arange(count, dtype=torch.float64)[:, None]
    return ((0.5 + steps / torch.tensor([plastic**2, plastic], dtype=torch.float64)) % 1).float()


class PointQueries(nn.Module):
    """Learned queries, each of which looks first at a point that its position says (Deformable DETR, section 4.1)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(count, 2 * width))  # position and content
        self.reference = nn.Linear(width, 2)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def forward(self, memory: Memory) -> Queries:
        """Repeat the queries for each image of `memory`."""
        position, content = self.embedding.expand(memory.tokens.shape[0], -1, -1).chunk(
            2, dim=-1
        )  # [B, Q, D]
        return Queries(content=content, position=position, reference=self.reference(position).sigmoid())


class ConditionalQueries(nn.Module):
    """Learned positions, each of which says a reference point; they start with no content (Conditional DETR)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(count, width))
        hidden, point = nn.Linear(width, width), nn.Linear(width, 2)
        nn.init.xavier_uniform_(hidden.weight)
        nn.init.xavier_uniform_(point.weight)
        self.reference = nn.Sequential(hidden, nn.ReLU(), point)

    def forward(self, memory: Memory) -> Queries:
        """Repeat the queries for each image of `memory`."""
        position = self.position.expand(memory.tokens.shape[0], -1, -1)  # [B, Q, D]
        return Queries(
            content=torch.zeros_like(position),
            position=position,
            reference=self.reference(position).sigmoid(),
        )


class Proposals(nn.Module):
    """Asks every memory token whether there is an object, and where (Deformable DETR, appendix A.4)."""

    def __init__(self, width: int, class_head: IndependentClassHead, box_head: DeltaHead) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.class_head = class_head
        self.box_head = box_head

    def forward(
        self, memory: Memory
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S C"], Float[Tensor, "B S 4"]]:
        """Return what each token stands for, its logits, and from where its box is measured, before the sigmoid.

        Padded cells, and those at the very edge of the image, see nothing, and their box is (1, 1, 1, 1).
        """
        assert memory.levels is not None
        cells = cell_boxes(memory.levels)  # [B, S, 4]
        inside = ((cells > 0.01) & (cells < 0.99)).all(-1)  # [B, S]
        if memory.levels.padding_mask is not None:
            inside &= ~memory.levels.padding_mask
        tokens = self.norm(self.projection(memory.tokens.masked_fill(~inside[..., None], 0.0)))
        start = torch.log(cells / (1 - cells)).masked_fill(~inside[..., None], torch.inf)
        return tokens, self.class_head(tokens), start

    def boxes(self, tokens: Float[Tensor, "B Q D"], start: Float[Tensor, "B Q 4"]) -> Float[Tensor, "B Q 4"]:
        """Return the boxes (cxcywh in 0-1) that these tokens propose."""
        return (self.box_head(tokens) + start).sigmoid()


class ProposedQueries(nn.Module):
    """The best proposals become the queries: their boxes the references, all else is made of these (two-stage)."""

    def __init__(self, proposals: Proposals, count: int, width: int) -> None:
        super().__init__()
        self.proposals = proposals
        self.count = count
        self.projection = nn.Linear(2 * width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, memory: Memory) -> Queries:
        """Choose the queries; the class head's first logit says how likely there is an object of any class."""
        tokens, logits, start = self.proposals(memory)
        # All of them are boxes, for all of them are matched in training.
        proposals = Predictions(logits=logits, boxes=self.proposals.boxes(tokens, start), no_object=False)
        best = strongest(logits[..., 0], self.count)  # [B, Q]
        reference = pick(proposals.boxes, best).detach()
        made = self.norm(self.projection(sine_boxes(reference, self.norm.normalized_shape[0] // 2)))
        position, content = made.chunk(2, dim=-1)
        return Queries(content=content, position=position, reference=reference, proposals=proposals)


class MixedQueries(nn.Module):
    """The best proposals' boxes are the references; the content is learned (DINO, section 3.4)."""

    def __init__(self, proposals: Proposals, count: int, width: int, *, ranking: Ranking) -> None:
        """Compose it; `ranking` says which proposals are best, and which queries may attend to which."""
        super().__init__()
        self.proposals = proposals
        self.ranking = ranking
        self.content = nn.Parameter(torch.randn(count, width))

    def forward(self, memory: Memory) -> Queries:
        """Choose the references; a proposal is as good as its best class."""
        tokens, logits, start = self.proposals(memory)
        assert memory.levels is not None
        scores = self.ranking.scores(logits.amax(-1), memory.levels.shapes)  # [B, S]
        best = strongest(scores, len(self.content))  # [B, Q]
        chosen = Predictions(
            logits=pick(logits, best),
            boxes=self.proposals.boxes(pick(tokens, best), pick(start, best)),
            no_object=False,
        )
        content = self.content[: best.shape[1]].expand(best.shape[0], -1, -1)
        # The decoder makes the position of the references.
        return Queries(
            content=content,
            position=torch.zeros_like(content),
            reference=chosen.boxes.detach(),
            proposals=chosen,
            causal_mask=self.ranking.mask(content.shape[1], content.device),
        )


class Ranking(Protocol):
    """How proposals are ranked that become queries, the best first."""

    def scores(self, scores: Float[Tensor, "B S"], shapes: Shapes) -> Float[Tensor, "B S"]:
        """Return what the cells of maps of these shapes are ranked by, given the logits of their best classes."""

    def mask(self, count: int | torch.SymInt, device: torch.device) -> Bool[Tensor, "Q Q"] | None:
        """Return True where the query (row) may not attend to the query (column); None: all attend to all."""


class RankByScore:
    """DINO's: by the score; queries attend to all others."""

    def scores(self, scores: Float[Tensor, "B S"], shapes: Shapes) -> Float[Tensor, "B S"]:  # noqa: ARG002 - the protocol's
        """Return the scores as they are."""
        return scores

    def mask(self, count: int | torch.SymInt, device: torch.device) -> None:
        """Return None."""


class RankPeaksFirst:
    """Peaks of the maps come first, and queries attend only to those that rank before them.

    Beside a better proposal of the same map, a proposal is likely to be of the same object (CenterNet, Zhou et al.
    2019, section 3). Of two queries at one object, only the lower-ranked sees the other, and can give way to it.
    """

    def scores(self, scores: Float[Tensor, "B S"], shapes: Shapes) -> Float[Tensor, "B S"]:
        """Return scores by which local maxima come before all other cells."""
        return peaks_first(scores, shapes)

    def mask(self, count: int | torch.SymInt, device: torch.device) -> Bool[Tensor, "Q Q"]:
        """Return True where the column comes after the row."""
        return causal_mask(count, device)


def peaks_first(scores: Float[Tensor, "B S"], shapes: Shapes) -> Float[Tensor, "B S"]:
    """Return scores by which cells that none of their eight neighbours exceeds come before all others."""
    maps = scores.split([height * width for height, width in shapes], dim=1)
    highest = [
        F.max_pool2d(cells.unflatten(1, (1, *shape)), 3, stride=1, padding=1).flatten(1)
        for cells, shape in zip(maps, shapes, strict=True)
    ]
    return torch.where(scores < torch.cat(highest, 1), scores - 100, scores)  # logits differ by less


def causal_mask(count: int | torch.SymInt, device: torch.device) -> Bool[Tensor, "Q Q"]:
    """Return True where the column comes after the row."""
    rank = torch.arange(count, device=device)
    return rank > rank[:, None]


def strongest(scores: Float[Tensor, "B S"], count: int) -> Int[Tensor, "B Q"]:
    """Return the places of the `count` highest scores, best first; of all where the maps have fewer cells."""
    return scores.topk(torch.sym_min(count, scores.shape[1]), dim=1).indices


def pick(values: Float[Tensor, "B S X"], index: Tensor) -> Float[Tensor, "B Q X"]:
    """Return the chosen rows of each image."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def cell_boxes(levels: Levels) -> Float[Tensor, "B S 4"]:
    """Return a box around every cell's middle: 5 % of the image on the finest map, twice that on each next."""
    centres = cell_centres(levels)
    sizes = [
        torch.full((h * w, 2), 0.05 * 2**level, device=centres.device)
        for level, (h, w) in enumerate(levels.shapes)
    ]
    return torch.cat([centres, torch.cat(sizes).expand_as(centres)], dim=-1)
