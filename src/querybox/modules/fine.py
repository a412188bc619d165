"""The decoder of D-FINE (Peng et al. 2024), which predicts where the edges of a box are as distributions.

Fine-grained distribution refinement (FDR, section 4.1): a plain head predicts a start box after the first layer. Every
layer then changes the logits of distributions of the distances of the four edges from those of the start box.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.edges import Edges
from querybox.modules.blocks import Block, Residual, zero_linear
from querybox.modules.decoder import DeformableDecoderLayer, apply_deltas
from querybox.modules.heads import DeltaHead, EdgeHead, SigmoidClassHead
from querybox.modules.refinement import run_layers
from querybox.structures import Memory, Predictions, Queries, at_least_float32

BINS = 33
"""Distances of each distribution in all published models, N."""
LARGEST = 65504.0
"""The largest number in float16."""


class Gate(Residual):
    """Replaces the residual connection of cross-attention: learned gates weight a block's input and its output."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(width, dropout)
        self.gate = zero_linear(2 * width, 2 * width)

    def forward(self, x: Float[Tensor, "B N D"], block: Block) -> Float[Tensor, "B N D"]:
        """Return the norm of the weighted sum of `x` and the output of `block`."""
        y = self.dropout(block(x))
        first, second = self.gate(torch.cat([x, y], -1)).sigmoid().chunk(2, -1)
        normalized: Tensor = self.norm(first * x + second * y)
        return normalized


class BoundedResidual(Residual):
    """Residual connection that limits the sum to the range of float16 before normalising it."""

    def forward(self, x: Float[Tensor, "B N D"], block: Block) -> Float[Tensor, "B N D"]:
        """Return the norm of `x` plus the output of `block`."""
        normalized: Tensor = self.norm((x + self.dropout(block(x))).clamp(-LARGEST, LARGEST))
        return normalized


class EdgeDistances(nn.Module):
    """The weighting function W(n) of FDR: distances that lie close together near zero, and far apart at the ends."""

    up: Tensor
    scale: Tensor

    def __init__(self, scale: float) -> None:
        """Set the curvature; a larger `scale` (D-FINE's ``reg_scale``) gives smaller steps near zero."""
        super().__init__()
        self.register_buffer("up", torch.tensor([0.5]))
        self.register_buffer("scale", torch.tensor([scale]))

    def forward(self) -> Float[Tensor, " N"]:
        """Return the N distances, relative to the width or height of the start box."""
        limit = self.up.abs() * self.scale.abs()  # [1]
        count = BINS // 2 - 1  # positive distances except for the largest
        powers = torch.arange(1, count + 1, device=limit.device, dtype=limit.dtype) / count
        steps = (limit + 1) ** powers - 1  # [15]
        distances = torch.cat([-2 * limit, -steps.flip(0), torch.zeros_like(limit), steps, 2 * limit])
        return distances / self.scale.abs()


class Quality(nn.Module):
    """Predicts from the shape of its edges' distributions how good a box is (location quality estimator, LQE)."""

    TOP = 4
    """Number of the largest probabilities of each edge that are used."""
    HIDDEN = 64
    """Hidden features."""

    def __init__(self, *, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        last = zero_linear(self.HIDDEN, 1)
        self.layers = nn.Sequential(nn.Linear(4 * (self.TOP + 1), self.HIDDEN), activation(), last)

    def forward(self, probabilities: Float[Tensor, "B Q 4 N"]) -> Float[Tensor, "B Q 1"]:
        """Return a number that is added to all class logits of a query; initially zero."""
        top = probabilities.topk(self.TOP, -1).values
        quality: Tensor = self.layers(torch.cat([top, top.mean(-1, keepdim=True)], -1).flatten(2))
        return quality


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinedEdges:
    """What a layer of a `FineDecoder` predicted, and what the next one starts from."""

    content: Float[Tensor, "B Q D"]
    """Output of the layer; zero before the first one."""
    boxes: Float[Tensor, "B Q 4"]
    """Boxes predicted by the layer; the references of the queries before the first one."""
    edges: Edges | None = None
    """The distributions of the edges of the boxes; None before the first layer."""
    first_boxes: Float[Tensor, "B Q 4"] | None = None
    """The start boxes of the distributions, with gradient; after the first layer only."""

    @property
    def reference(self) -> Float[Tensor, "B Q 4"]:
        """References around which the next layer attends."""
        return self.boxes.detach()


class FineDecoder(nn.Module):
    """Decoder of D-FINE.

    Attributes:
        last_only: Whether to return the predictions of the last layer only, which are enough for inference.
    """

    def __init__(
        self,
        layers: list[DeformableDecoderLayer],
        class_heads: list[SigmoidClassHead],
        box_heads: list[EdgeHead],
        *,
        qualities: list[Quality],
        first_box: DeltaHead,
        position: nn.Module,
        scale: float,
        inference_layers: int | None = None,
    ) -> None:
        """Create a decoder from its layers, each with two heads and a `Quality`; see `ReferenceDecoder`.

        The start box is predicted by `first_box` from the output of the first layer. For `scale` see `EdgeDistances`.
        """
        super().__init__()
        self.last_only = False
        self.inference_layers = inference_layers
        self.layers = nn.ModuleList(layers)
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.quality = nn.ModuleList(qualities)
        self.first_box = first_box
        self.position = position
        self.distances = EdgeDistances(scale)
        self.no_object = class_heads[0].no_object

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, first to last."""
        return run_layers(self, queries, memory)

    def start(self, queries: Queries) -> RefinedEdges:
        """Return the state before the first layer; see `RefiningDecoder`."""
        assert queries.reference is not None
        return RefinedEdges(content=torch.zeros_like(queries.content), boxes=queries.reference)

    def refine(self, index: int, content: Float[Tensor, "B Q D"], state: RefinedEdges) -> RefinedEdges:
        """Predict changes of the distributions of the layer before; see `RefiningDecoder`."""
        # In float32, because changes of all layers add up.
        change = at_least_float32(self.box_heads[index](content + state.content.detach()))
        logits, first_boxes = change.unflatten(-1, (4, BINS)), None
        if state.edges is None:
            first_boxes = apply_deltas(state.reference, self.first_box(content))
            edges = Edges(logits=logits, start=first_boxes.detach(), distances=self.distances())
        else:
            edges = replace(state.edges, logits=state.edges.logits + logits)
        return RefinedEdges(content=content, boxes=edges.boxes(), edges=edges, first_boxes=first_boxes)

    def predict(self, index: int, state: RefinedEdges) -> Predictions:
        """Return the predictions of a layer; see `RefiningDecoder`."""
        assert state.edges is not None
        logits, initial = self.class_heads[index](state.content), None
        if state.first_boxes is not None and not self.last_only:
            initial = Predictions(logits=logits, boxes=state.first_boxes, no_object=self.no_object)
        return Predictions(
            logits=logits + self.quality[index](state.edges.probabilities()),
            boxes=state.boxes,
            no_object=self.no_object,
            edges=state.edges,
            initial=initial,
            content=state.content,
        )
