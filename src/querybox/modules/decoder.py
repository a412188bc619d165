"""The decoder: queries attend to each other and to the memory, and every layer predicts classes and boxes.

`Decoder` is DETR's. `ReferenceDecoder` is that of Deformable DETR and DINO, whose queries have a reference (a point or
a box) around which they attend and relative to which they predict their box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.boxes import inverse_sigmoid
from querybox.modules.attention import Attention
from querybox.modules.blocks import FeedForward, Residual
from querybox.modules.deformable_attention import DeformableAttention
from querybox.modules.heads import BoxHead, ClassHead, DeltaHead, SigmoidClassHead
from querybox.modules.refinement import Refinement, run_layers
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
        residual: type[Residual] = Residual,
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
        """Return the updated content of the queries; `position` is their positional embedding."""
        content = self.self_attention_residual(
            content, lambda x: self.self_attention(x + position, x + position, x)
        )
        assert memory.position is not None
        keys = memory.tokens + memory.position
        content = self.cross_attention_residual(
            content, lambda x: self.cross_attention(x + position, keys, memory.tokens, memory.padding_mask)
        )
        return self.feedforward_residual(content, self.feedforward)


class Decoder(nn.Module):
    """Decoder of DETR, with one final norm and one pair of heads shared by all layers.

    Attributes:
        last_only: Whether to predict with the last layer only, which is enough for inference.
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
        residual: type[Residual] = Residual,
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
        self.no_object = class_head.no_object

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, first to last."""
        content, states = queries.content, []
        for layer in self.layers:
            content = self.normalization.between_layers(layer(content, queries.position, memory), self.norm)
            states.append(content)
        states = states[-1:] if self.last_only else states
        outputs = self.normalization.before_heads(states, self.norm)  # [L, B, Q, D]
        logits, boxes = self.class_head(outputs), self.box_head(outputs)  # [L, B, Q, K], [L, B, Q, 4]
        return tuple(
            Predictions(logits=a, boxes=b, no_object=self.no_object, content=c)
            for a, b, c in zip(logits, boxes, outputs, strict=True)
        )


class Normalization(Protocol):
    """Where the decoder's final norm is applied."""

    def between_layers(self, content: Float[Tensor, "B Q D"], norm: nn.Module) -> Float[Tensor, "B Q D"]:
        """Return the input of the next layer, given the output of a layer."""

    def before_heads(self, states: list[Float[Tensor, "B Q D"]], norm: nn.Module) -> Float[Tensor, "L B Q D"]:
        """Return the input of the heads, given the results of `between_layers` for all layers, first to last."""


class NormBeforeHeads:
    """As in DETR: content is normalised for the heads only."""

    def between_layers(self, content: Float[Tensor, "B Q D"], norm: nn.Module) -> Float[Tensor, "B Q D"]:  # noqa: ARG002 - protocol
        """Return the content unchanged."""
        return content

    def before_heads(self, states: list[Float[Tensor, "B Q D"]], norm: nn.Module) -> Float[Tensor, "L B Q D"]:
        """Normalise every state."""
        normalized: Tensor = norm(torch.stack(states))
        return normalized


class NormBetweenLayers:
    """As in transformers' DETR with ``auxiliary_loss``: each layer gets the normalised content of the one before.

    The content of the last layer is normalised twice for the heads, that of the others once.
    """

    def between_layers(self, content: Float[Tensor, "B Q D"], norm: nn.Module) -> Float[Tensor, "B Q D"]:
        """Normalise the content."""
        normalized: Tensor = norm(content)
        return normalized

    def before_heads(self, states: list[Float[Tensor, "B Q D"]], norm: nn.Module) -> Float[Tensor, "L B Q D"]:
        """Normalise the last state again."""
        return torch.stack([*states[:-1], norm(states[-1])])


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention around their references, the feed-forward network."""

    def __init__(
        self,
        width: int,
        heads: int,
        points: tuple[int, ...],
        feedforward: int,
        dropout: float,
        *,
        attention: Callable[[int, int, tuple[int, ...]], DeformableAttention] = DeformableAttention,
        activation: type[nn.Module] = nn.ReLU,
        cross_attention_residual: type[Residual] = Residual,
        feedforward_residual: type[Residual] = Residual,
    ) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = attention(width, heads, points)
        self.feedforward = FeedForward(width, feedforward, dropout, activation=activation)
        self.self_attention_residual = Residual(width, dropout)
        self.cross_attention_residual = cross_attention_residual(width, dropout)
        self.feedforward_residual = feedforward_residual(width, dropout)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        reference: Float[Tensor, "B Q R"],
        queries: Queries,
        memory: Memory,
    ) -> Float[Tensor, "B Q D"]:
        """Return the updated content; `queries` has the attention masks and the number of denoising queries."""
        levels = memory.levels
        assert levels is not None

        def self_attention(x: Tensor) -> Tensor:
            first = queries.num_denoising
            positioned = x + position
            # The matched queries do not attend to denoising queries, which contain the ground truth.
            matched = positioned[:, first:]
            output = self.self_attention(matched, matched, x[:, first:], blocked=queries.causal_mask)
            if not first:
                return output
            denoised = self.self_attention(
                positioned[:, :first], positioned, x, blocked=queries.denoising_mask
            )
            return torch.cat([denoised, output], 1)

        def cross_attention(x: Tensor) -> Tensor:
            return self.cross_attention(x + position, reference, memory.tokens, levels)

        content = self.self_attention_residual(content, self_attention)
        content = self.cross_attention_residual(content, cross_attention)
        output: Tensor = self.feedforward_residual(content, self.feedforward)
        return output


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinedBoxes:
    """What a layer of a `ReferenceDecoder` predicted, and what the next one starts from."""

    reference: Float[Tensor, "B Q R"]
    """References around which the next layer attends."""
    base: Float[Tensor, "B Q R"]
    """References to which the boxes of the next layer are relative; may have a gradient."""
    boxes: Float[Tensor, "B Q 4"] | None = None
    """Boxes predicted by the layer; None before the first one."""
    normalized: Float[Tensor, "B Q D"] | None = None
    """Output of the layer, normalised for the heads; None before the first one."""


class ReferenceDecoder(nn.Module):
    """Decoder whose layers predict boxes relative to the references of their queries.

    Attributes:
        last_only: Whether to return the predictions of the last layer only, which are enough for inference.
    """

    def __init__(
        self,
        layers: list[DeformableDecoderLayer],
        class_heads: list[SigmoidClassHead],
        box_heads: list[DeltaHead],
        *,
        refinement: Refinement,
        norm: nn.Module,
        position: nn.Module | None = None,
        eps: float = 1e-5,
        inference_layers: int | None = None,
    ) -> None:
        """Create a decoder from its layers and heads.

        Args:
            layers: Decoder layers, at least one.
            class_heads: One per layer, or one shared by all layers.
            box_heads: One per layer, or one shared by all layers.
            refinement: How references change from layer to layer.
            norm: Norm of the content before the heads.
            position: Computes positional embeddings of the queries from their references, in every layer; None to use
                the embeddings of `Queries.position`.
            eps: Distance from 0 and 1 to which references are clamped in the inverse sigmoid.
            inference_layers: Number of layers that are run in evaluation mode; None for all.
        """
        super().__init__()
        self.last_only = False
        self.inference_layers = inference_layers
        self.layers = nn.ModuleList(layers)
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.refinement = refinement
        self.norm = norm
        self.position = position
        self.eps = eps
        self.no_object = class_heads[0].no_object

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, first to last."""
        return run_layers(self, queries, memory)

    def start(self, queries: Queries) -> RefinedBoxes:
        """Return the state before the first layer; see `RefiningDecoder`."""
        assert queries.reference is not None
        return RefinedBoxes(reference=queries.reference, base=queries.reference)

    def refine(self, index: int, content: Float[Tensor, "B Q D"], state: RefinedBoxes) -> RefinedBoxes:
        """Predict boxes relative to those of the layer before; see `RefiningDecoder`."""
        predict_boxes = partial(self.predict_boxes, self.box_heads[index % len(self.box_heads)])
        normalized = self.norm(content)
        boxes = predict_boxes(state.base, normalized)
        reference, base = self.refinement(state.reference, boxes, content, predict_boxes)
        return RefinedBoxes(reference=reference, base=base, boxes=boxes, normalized=normalized)

    def predict(self, index: int, state: RefinedBoxes) -> Predictions:
        """Return the predictions of a layer; see `RefiningDecoder`."""
        assert state.boxes is not None
        logits = self.class_heads[index % len(self.class_heads)](state.normalized)
        return Predictions(
            logits=logits, boxes=state.boxes, no_object=self.no_object, content=state.normalized
        )

    def predict_boxes(
        self, box_head: nn.Module, base: Float[Tensor, "B Q R"], content: Float[Tensor, "B Q D"]
    ) -> Float[Tensor, "B Q 4"]:
        """Return the boxes that a head predicts relative to `base`."""
        return apply_deltas(base, box_head(content), self.eps)


def apply_deltas(
    reference: Float[Tensor, "B Q R"], deltas: Float[Tensor, "B Q 4"], eps: float = 1e-5
) -> Float[Tensor, "B Q 4"]:
    """Return boxes (cxcywh in 0-1) from references and deltas, which are added before the sigmoid.

    For reference points (R = 2) only the centre of the box is relative to the reference.
    """
    logits = inverse_sigmoid(reference, eps)
    if logits.shape[-1] == 2:
        logits = torch.cat([logits, torch.zeros_like(logits)], dim=-1)
    return (logits + deltas).sigmoid()


@torch.no_grad()
def init_similarity_attention(decoder: Decoder) -> None:
    """Initialise cross-attention such that the score of a key is its similarity to the query.

    Both projections become the same permutation, which distributes the sine and cosine pairs of the positional encoding
    over the heads, so that each head gets high and low frequencies of both axes. The score at a query's own position is
    about 6, compared with 0 elsewhere.
    """
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        attention = layer.cross_attention
        query, key = attention.query, attention.key
        assert isinstance(query, nn.Linear)
        assert isinstance(key, nn.Linear)
        width = query.in_features
        pairs = torch.arange(width).view(-1, 2)  # each sine stays with its cosine
        order = torch.cat([pairs[head :: attention.heads].flatten() for head in range(attention.heads)])
        permutation = 0.6 * torch.eye(width)[order]
        query.weight.copy_(permutation)
        key.weight.copy_(permutation)
