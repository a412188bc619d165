"""The decoder: queries attend to one another and to the memory, and every layer predicts.

`Decoder` is DETR's. `ReferenceDecoder` is that of Deformable DETR and DINO, whose queries have a reference: the place
where they look, from which their box is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.boxes import inverse_sigmoid
from querybox.modules.attention import Attention
from querybox.modules.blocks import FeedForward, Residual, ResidualType
from querybox.modules.deformable_attention import DeformableAttention
from querybox.modules.heads import BoxHead, ClassHead, DeltaHead, IndependentClassHead
from querybox.structures import Memory, Predictions, Queries


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the memory, then the feed-forward network."""

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        *,
        residual: ResidualType = Residual,
    ) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.self_attention_residual = residual(width, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.cross_attention_residual = residual(width, dropout)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.feedforward_residual = residual(width, dropout)

    def forward(
        self, content: Float[Tensor, "B Q D"], position: Float[Tensor, "B Q D"], memory: Memory
    ) -> Float[Tensor, "B Q D"]:
        """Refine the queries' content; `position` is the queries' own."""
        content = self.self_attention_residual(
            content, lambda x: self.self_attention(x + position, x + position, x)
        )
        keys = memory.tokens + memory.position
        content = self.cross_attention_residual(
            content, lambda x: self.cross_attention(x + position, keys, memory.tokens, memory.padding_mask)
        )
        return self.feedforward_residual(content, self.feedforward)


class Decoder(nn.Module):
    """Runs the layers; one norm and one pair of heads serve them all.

    Attributes:
        last_only: Whether only the predictions of the last layer are made, which are all that inference needs.
    """

    def __init__(
        self,
        class_head: ClassHead,
        box_head: BoxHead,
        *,
        layers: int,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        residual: ResidualType = Residual,
        normalization: Normalization,
    ) -> None:
        super().__init__()
        self.last_only = False
        self.normalization = normalization
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, feedforward, dropout, residual=residual) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.class_head = class_head
        self.box_head = box_head

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, first to last."""
        content, states = queries.content, []
        for layer in self.layers:
            content = self.normalization.between(layer(content, queries.position, memory), self.norm)
            states.append(content)
        states = states[-1:] if self.last_only else states
        answers = self.normalization.before_heads(states, self.norm)  # [L, B, Q, D]
        logits, boxes = self.class_head(answers), self.box_head(answers)  # [L, B, Q, K], [L, B, Q, 4]
        return tuple(Predictions(logits=a, boxes=b) for a, b in zip(logits, boxes, strict=True))


class Normalization(Protocol):
    """Where the decoder's one norm is applied."""

    def between(self, content: Float[Tensor, "B Q D"], norm: nn.Module) -> Float[Tensor, "B Q D"]:
        """Return what a layer hands to the next."""

    def before_heads(self, states: list[Float[Tensor, "B Q D"]], norm: nn.Module) -> Float[Tensor, "L B Q D"]:
        """Return what the heads see, given what each layer handed on; the last state is the last layer's."""


class NormBeforeHeads:
    """DETR's: only the heads see normalised content."""

    def between(self, content: Float[Tensor, "B Q D"], norm: nn.Module) -> Float[Tensor, "B Q D"]:  # noqa: ARG002 - the protocol's
        """Return the content as it is."""
        return content

    def before_heads(self, states: list[Float[Tensor, "B Q D"]], norm: nn.Module) -> Float[Tensor, "L B Q D"]:
        """Normalise every state."""
        states_normalized: Tensor = norm(torch.stack(states))
        return states_normalized


class NormBetweenLayers:
    """That of transformers' DETR where its ``auxiliary_loss`` is set: layers hand on normalised content.

    The heads see the last layer's content normalised twice, the others' once.
    """

    def between(self, content: Float[Tensor, "B Q D"], norm: nn.Module) -> Float[Tensor, "B Q D"]:
        """Normalise."""
        normalized: Tensor = norm(content)
        return normalized

    def before_heads(self, states: list[Float[Tensor, "B Q D"]], norm: nn.Module) -> Float[Tensor, "L B Q D"]:
        """Normalise the last state once more."""
        return torch.stack([*states[:-1], norm(states[-1])])


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention around their references, the feed-forward network."""

    def __init__(
        self, width: int, heads: int, levels: int, points: int, feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = DeformableAttention(width, heads, levels, points)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.self_attention_residual = Residual(width, dropout)
        self.cross_attention_residual = Residual(width, dropout)
        self.feedforward_residual = Residual(width, dropout)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        reference: Float[Tensor, "B Q R"],
        queries: Queries,
        memory: Memory,
    ) -> Float[Tensor, "B Q D"]:
        """Refine the queries' content; `queries` says which of them are there for denoising."""
        levels = memory.levels
        assert levels is not None

        def agree(x: Tensor) -> Tensor:
            first = queries.num_denoising
            place = x + position
            # Denoising queries are not even shown to the others: they would see the answers.
            others = place[:, first:]
            agreed = self.self_attention(others, others, x[:, first:], blocked=queries.causal_mask)
            if not first:
                return agreed
            denoised = self.self_attention(place[:, :first], place, x, blocked=queries.denoising_mask)
            return torch.cat([denoised, agreed], 1)

        def look(x: Tensor) -> Tensor:
            return self.cross_attention(x + position, reference, memory.tokens, levels)

        content = self.self_attention_residual(content, agree)
        content = self.cross_attention_residual(content, look)
        return self.feedforward_residual(content, self.feedforward)


class ReferenceDecoder(nn.Module):
    """Runs the layers; each predicts a box measured from the reference, which may move there.

    Attributes:
        last_only: Whether only the predictions of the last layer are returned, which are all that inference needs.
    """

    def __init__(
        self,
        layers: list[DeformableDecoderLayer],
        class_heads: list[IndependentClassHead],
        box_heads: list[DeltaHead],
        *,
        refinement: Refinement,
        norm: nn.Module,
        position: nn.Module | None = None,
        margin: float = 1e-5,
    ) -> None:
        """Compose it.

        Args:
            layers: One or more.
            class_heads: One a layer, or one that serves all.
            box_heads: One a layer, or one that serves all.
            refinement: How references move from layer to layer.
            norm: Of the content before the heads.
            position: Makes the queries' position from their references; None takes the position they came with.
            margin: Boxes are measured from references that are this far from 0 and 1 at least.
        """
        super().__init__()
        self.last_only = False
        self.layers = nn.ModuleList(layers)
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.refinement = refinement
        self.norm = norm
        self.position = position
        self.margin = margin

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, first to last."""
        assert queries.reference is not None
        content, position = queries.content, queries.position
        seen = reference = queries.reference  # where layers look; where boxes are measured from
        predictions = []
        for index, layer in enumerate(self.layers):
            class_head = self.class_heads[index % len(self.class_heads)]
            measure = partial(self.measure, self.box_heads[index % len(self.box_heads)])
            if self.position is not None:
                position = self.position(seen, memory)
            content = layer(content, position, seen, queries, memory)
            answer = self.norm(content)
            boxes = measure(reference, answer)
            if not self.last_only or index == len(self.layers) - 1:
                predictions.append(Predictions(logits=class_head(answer), boxes=boxes, no_object=False))
            seen, reference = self.refinement(seen, boxes, content, measure)
        return tuple(predictions)

    def measure(
        self, box_head: nn.Module, start: Float[Tensor, "B Q R"], content: Float[Tensor, "B Q D"]
    ) -> Float[Tensor, "B Q 4"]:
        """Return the boxes that a head measures from the references `start`."""
        return move(start, box_head(content), self.margin)


Measure = Callable[[Tensor, Tensor], Tensor]
"""Given a reference and content, the boxes that a head measures from it."""


class Refinement(Protocol):
    """How the references of a `ReferenceDecoder` move, and where a gradient stops."""

    def __call__(
        self,
        seen: Float[Tensor, "B Q R"],
        boxes: Float[Tensor, "B Q 4"],
        content: Float[Tensor, "B Q D"],
        measure: Measure,
    ) -> tuple[Float[Tensor, "B Q R"], Float[Tensor, "B Q R"]]:
        """Return where the next layer looks, and from where its boxes are measured.

        Args:
            seen: Where the layer looked.
            boxes: What it predicted.
            content: Its output, before the norm of the heads.
            measure: Calls the layer's head.
        """


class KeepReference:
    """References do not move (Deformable DETR without refinement)."""

    def __call__(
        self,
        seen: Tensor,
        boxes: Tensor,  # noqa: ARG002 - the protocol's
        content: Tensor,  # noqa: ARG002 - the protocol's
        measure: Measure,  # noqa: ARG002 - the protocol's
    ) -> tuple[Tensor, Tensor]:
        """Return the reference as it is."""
        return seen, seen


class Refine:
    """References move to the new boxes, detached (Deformable DETR, appendix A.4)."""

    def __call__(
        self,
        seen: Tensor,  # noqa: ARG002 - the protocol's
        boxes: Tensor,
        content: Tensor,  # noqa: ARG002 - the protocol's
        measure: Measure,  # noqa: ARG002 - the protocol's
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes, detached."""
        boxes = boxes.detach()
        return boxes, boxes


class LookForwardTwice:
    """References move to the new boxes; the next layer's boxes have a gradient through them (DINO, section 3.5).

    The gradient stops where the next layer looks, and where the new boxes are measured from.
    """

    def __call__(
        self,
        seen: Tensor,
        boxes: Tensor,  # noqa: ARG002 - the protocol's
        content: Tensor,
        measure: Measure,
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes that the content gives without the norm: detached, and as they are."""
        moved = measure(seen, content)
        return moved.detach(), moved


def move(
    reference: Float[Tensor, "B Q R"], delta: Float[Tensor, "B Q 4"], margin: float = 1e-5
) -> Float[Tensor, "B Q 4"]:
    """Return the boxes (cxcywh in 0-1) that lie `delta` from the references, before the sigmoid.

    From a reference point (R = 2) only the box's centre is measured.
    """
    start = inverse_sigmoid(reference, margin)
    if start.shape[-1] == 2:
        start = torch.cat([start, torch.zeros_like(start)], dim=-1)
    return (start + delta).sigmoid()


@torch.no_grad()
def look_alike(decoder: Decoder, gain: float = 0.6) -> None:
    """Make cross-attention score a key by how alike it is to the query.

    Both projections become the same permutation, which deals the encoding's sine and cosine pairs out to the heads in
    turn, so that each head gets fine and coarse ones of both axes. At `gain` 0.6 the score at a query's own place is
    near 6, against 0 elsewhere.
    """
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        attention = layer.cross_attention
        query, key = attention.query, attention.key
        assert isinstance(query, nn.Linear)
        assert isinstance(key, nn.Linear)
        width = query.in_features
        pairs = torch.arange(width).view(-1, 2)  # a sine and its cosine stay together
        order = torch.cat([pairs[head :: attention.heads].flatten() for head in range(attention.heads)])
        permutation = gain * torch.eye(width)[order]
        query.weight.copy_(permutation)
        key.weight.copy_(permutation)
