"""Object queries, from which the decoder predicts objects; one class per method of initialisation.

`LearnedQueries` are those of DETR, `ConditionalQueries` of Conditional DETR, `PointQueries` of Deformable DETR,
`ProposedQueries` of two-stage Deformable DETR, `MixedQueries` of DINO and `TokenQueries` of RT-DETR. `PlacedQueries`
are initialised at points spread over the image, for a DETR that learns from few images.
"""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from querybox.levels import Levels, Shapes
from querybox.modules.encoder import cell_centres
from querybox.modules.heads import DeltaHead, SigmoidClassHead
from querybox.modules.position import SinePositionEncoding, sine_boxes
from querybox.structures import Memory, Predictions, Queries, at_least_float32


class LearnedQueries(nn.Module):
    """Learned positional embeddings, the same for every image, with zero content."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(count, width))

    def forward(self, memory: Memory) -> Queries:
        """Repeat the queries for each image of `memory`."""
        position = self.position.expand(memory.tokens.shape[0], -1, -1)  # [B, Q, D]
        return Queries(content=torch.zeros_like(position), position=position)


class PlacedQueries(nn.Module):
    """Learned positions and content, both initialised to the encoding of points spread over the image."""

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
    """Return evenly spread points (y, x) in 0-1 for any count (the R2 sequence of M. Roberts, 2018)."""
    plastic = 1.32471795724474602596  # the real root of x^3 = x + 1
    points = [[(0.5 + step / each) % 1 for each in (plastic**2, plastic)] for step in range(count)]
    return torch.tensor(points, dtype=torch.float32)  # computed in float64, which Apple's GPUs do not have


class PointQueries(nn.Module):
    """Learned positions and content, with reference points predicted from the positions (Deformable DETR, 4.1).

    Attributes:
        sampling_layers: See `querybox.modules.deformable_attention.DeformableAttention`.
    """

    sampling_layers: ClassVar[tuple[str, ...]] = ("reference",)

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(count, 2 * width))  # position and content
        self.reference = nn.Linear(width, 2)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def forward(self, memory: Memory) -> Queries:
        """Repeat the queries for each image of `memory`."""
        embedding = self.embedding.expand(memory.tokens.shape[0], -1, -1)  # [B, Q, 2 D]
        position, content = embedding.chunk(2, dim=-1)
        return Queries(content=content, position=position, reference=self.reference(position).sigmoid())


class ConditionalQueries(nn.Module):
    """Learned positions with zero content, with reference points predicted from the positions (Conditional DETR)."""

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
    """Predicts a class and a box for every memory token (Deformable DETR, appendix A.4)."""

    def __init__(self, width: int, class_head: SigmoidClassHead, box_head: DeltaHead) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.class_head = class_head
        self.box_head = box_head
        self.no_object = class_head.no_object

    def forward(
        self, memory: Memory
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S C"], Float[Tensor, "B S 4"]]:
        """Return the projected tokens, their class logits, and their anchor boxes before the sigmoid.

        The tokens of padding and of cells at the edge of the image are zeroed, and their boxes are (1, 1, 1, 1).
        """
        assert memory.levels is not None
        cells = cell_boxes(memory.levels)  # [B, S, 4]
        inside = ((cells > 0.01) & (cells < 0.99)).all(-1)  # [B, S]
        if memory.levels.padding_mask is not None:
            inside &= ~memory.levels.padding_mask
        tokens = self.norm(self.projection(memory.tokens.masked_fill(~inside[..., None], 0.0)))
        anchors = torch.log(cells / (1 - cells)).masked_fill(~inside[..., None], torch.inf)
        return tokens, self.class_head(tokens), anchors

    def top(self, memory: Memory, count: int, ranking: Ranking) -> tuple[Float[Tensor, "B Q D"], Predictions]:
        """Return the `count` proposals that `ranking` ranks first, and their projected tokens.

        The score of a proposal is that of its best class.
        """
        assert memory.levels is not None
        tokens, logits, anchors = self(memory)
        inside = anchors.isfinite().all(-1)  # [B, S]
        scores = ranking.scores(logits.amax(-1), inside, memory.levels.shapes)  # [B, S]
        indices = top_k_indices(scores, count)  # [B, Q]
        tokens = gather_rows(tokens, indices)
        boxes = self.boxes(tokens, gather_rows(anchors, indices))
        logits = gather_rows(logits, indices)
        return tokens, Predictions(logits=logits, boxes=boxes, no_object=self.no_object)

    def boxes(
        self, tokens: Float[Tensor, "B Q D"], anchors: Float[Tensor, "B Q 4"]
    ) -> Float[Tensor, "B Q 4"]:
        """Return the boxes (cxcywh in 0-1) predicted from tokens relative to their anchors."""
        return (self.box_head(tokens) + anchors).sigmoid()


class ProposedQueries(nn.Module):
    """Queries made entirely from the highest-scoring proposals (two-stage Deformable DETR)."""

    def __init__(self, proposals: Proposals, count: int, width: int) -> None:
        super().__init__()
        self.proposals = proposals
        self.count = count
        self.projection = nn.Linear(2 * width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, memory: Memory) -> Queries:
        """Select the queries; the first class logit of a proposal is that of an object of any class."""
        tokens, logits, anchors = self.proposals(memory)
        # Boxes of all proposals, because all of them are matched in training.
        proposals = Predictions(
            logits=logits,
            boxes=self.proposals.boxes(tokens, anchors),
            no_object=self.proposals.no_object,
            class_rows=(0,),
        )
        selected = top_k_indices(logits[..., 0], self.count)  # [B, Q]
        reference = gather_rows(proposals.boxes, selected).detach()
        embedding = self.norm(self.projection(sine_boxes(reference, self.norm.normalized_shape[0] // 2)))
        position, content = embedding.chunk(2, dim=-1)
        return Queries(content=content, position=position, reference=reference, proposals=proposals)


class MixedQueries(nn.Module):
    """Mixed query selection: references are the highest-ranked proposals, content is learned (DINO, section 3.4)."""

    def __init__(self, proposals: Proposals, count: int, width: int, *, ranking: Ranking) -> None:
        """Create the queries; `ranking` ranks the proposals and determines which queries attend to each other."""
        super().__init__()
        self.proposals = proposals
        self.ranking = ranking
        self.content = nn.Parameter(torch.randn(count, width))

    def forward(self, memory: Memory) -> Queries:
        """Select the references."""
        _, selected = self.proposals.top(memory, len(self.content), self.ranking)
        batch, count, _ = selected.boxes.shape
        content = self.content[:count].expand(batch, -1, -1)
        # The decoder computes positions from the references.
        return Queries(
            content=content,
            position=torch.zeros_like(content),
            reference=selected.boxes.detach(),
            proposals=selected,
            causal_mask=self.ranking.mask(count, content.device),
        )


class TokenQueries(nn.Module):
    """Queries whose references are the highest-ranked proposals, and whose content is their tokens (RT-DETR)."""

    def __init__(self, proposals: Proposals, count: int, *, ranking: Ranking) -> None:
        """Create the queries; `ranking` ranks the proposals and determines which queries attend to each other."""
        super().__init__()
        self.proposals = proposals
        self.count = count
        self.ranking = ranking

    @property
    def exchangeable(self) -> bool:
        """Whether the order of the queries does not matter, because each attends to all others."""
        return self.ranking.mask(1, torch.device("cpu")) is None

    def forward(self, memory: Memory) -> Queries:
        """Select the queries."""
        tokens, selected = self.proposals.top(memory, self.count, self.ranking)
        content = tokens.detach()
        # The decoder computes positions from the references.
        return Queries(
            content=content,
            position=torch.zeros_like(content),
            reference=selected.boxes.detach(),
            proposals=selected,
            causal_mask=self.ranking.mask(content.shape[1], content.device),
        )


class Ranking(Protocol):
    """How proposals are ranked; the first ones become queries."""

    def scores(
        self, scores: Float[Tensor, "B S"], inside: Bool[Tensor, "B S"], shapes: Shapes
    ) -> Float[Tensor, "B S"]:
        """Return the ranking scores of cells.

        Args:
            scores: The logits of their best classes.
            inside: Whether they are neither padding nor at the edge of the image.
            shapes: The shapes of the maps.
        """

    def mask(self, count: int | torch.SymInt, device: torch.device) -> Bool[Tensor, "Q Q"] | None:
        """Return the self-attention mask of the queries: True = may not attend; None if all attend to all."""


class RankByScore:
    """As in DINO: proposals are ranked by score, and queries attend to all others."""

    def scores(
        self,
        scores: Float[Tensor, "B S"],
        inside: Bool[Tensor, "B S"],  # noqa: ARG002 - protocol
        shapes: Shapes,  # noqa: ARG002
    ) -> Float[Tensor, "B S"]:
        """Return the scores unchanged."""
        return scores

    def mask(self, count: int | torch.SymInt, device: torch.device) -> None:
        """Return None."""


class RankPeaksFirst:
    """Local maxima of each map are ranked first, and queries attend only to queries of higher rank.

    A proposal next to a better one of the same map is likely to belong to the same object (CenterNet, Zhou et al.
    2019, section 3). Of two queries on one object, only the lower-ranked one sees the other, so it can be suppressed.
    """

    def scores(
        self, scores: Float[Tensor, "B S"], inside: Bool[Tensor, "B S"], shapes: Shapes
    ) -> Float[Tensor, "B S"]:
        """Return scores in which local maxima rank before all other cells, and cells outside of the image last.

        Those outside have equal tokens, so that rounding would decide which of them are maxima.
        """
        scores = at_least_float32(scores)  # bf16 has steps of 0.5 near -100
        return prefer_local_maxima(torch.where(inside, scores, scores - 200), shapes)

    def mask(self, count: int | torch.SymInt, device: torch.device) -> Bool[Tensor, "Q Q"]:
        """Return a causal mask."""
        return causal_mask(count, device)


def prefer_local_maxima(scores: Float[Tensor, "B S"], shapes: Shapes) -> Float[Tensor, "B S"]:
    """Return scores in which cells that are maxima of their 3x3 neighbourhood rank before all others."""
    maps = scores.split([height * width for height, width in shapes], dim=1)
    neighbourhood_maxima = [
        F.max_pool2d(cells.unflatten(1, (1, *shape)), 3, stride=1, padding=1).flatten(1)
        for cells, shape in zip(maps, shapes, strict=True)
    ]
    # Logits differ by less than 100.
    return torch.where(scores < torch.cat(neighbourhood_maxima, 1), scores - 100, scores)


def causal_mask(count: int | torch.SymInt, device: torch.device) -> Bool[Tensor, "Q Q"]:
    """Return a mask that is True where the column comes after the row."""
    rank = torch.arange(count, device=device)
    return rank > rank[:, None]


def top_k_indices(scores: Float[Tensor, "B S"], count: int) -> Int[Tensor, "B Q"]:
    """Return the indices of the `count` highest scores, highest first, or of all if there are fewer."""
    return scores.topk(torch.sym_min(count, scores.shape[1]), dim=1).indices


def gather_rows(values: Float[Tensor, "B S X"], index: Tensor) -> Float[Tensor, "B Q X"]:
    """Return the rows of each image at `index`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def cell_boxes(levels: Levels) -> Float[Tensor, "B S 4"]:
    """Return a box at the centre of each cell: 5 % of the image on the finest map, twice as large on each next one."""
    centres = cell_centres(levels)
    sizes = [centres.new_full((h * w, 2), 0.05 * 2**level) for level, (h, w) in enumerate(levels.shapes)]
    return torch.cat([centres, torch.cat(sizes).expand_as(centres)], dim=-1)
