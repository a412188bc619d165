"""Decoders that refine the references which their layers attend around: the loop, and how references change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from querybox.structures import Memory, Predictions, Queries


@runtime_checkable
class LayerState(Protocol):
    """What a layer passes to the next one, besides its output."""

    @property
    def reference(self) -> Float[Tensor, "B Q R"]:
        """References around which the next layer attends."""


State = TypeVar("State", bound=LayerState)


@runtime_checkable
class RefiningDecoder(Protocol[State]):
    """What `run_layers` requires of a decoder."""

    training: bool
    last_only: bool
    """Whether only the predictions of the last layer are needed."""
    inference_layers: int | None
    """Number of layers that are run in evaluation mode; None for all."""

    @property
    def layers(self) -> nn.ModuleList:
        """The layers."""

    @property
    def position(self) -> nn.Module | None:
        """Computes positional embeddings of the queries from their references; None for those of `Queries`."""

    def start(self, queries: Queries) -> State:
        """Return the state before the first layer."""

    def refine(self, index: int, content: Float[Tensor, "B Q D"], state: State) -> State:
        """Return the state after layer `index`, given its output `content` and the state before it."""

    def predict(self, index: int, state: State) -> Predictions:
        """Return the predictions of layer `index`, given the state after it."""


def run_layers(decoder: RefiningDecoder[State], queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
    """Run the layers of a decoder, and return the predictions of every layer, first to last."""
    content, position = queries.content, queries.position
    state = decoder.start(queries)
    layers = list(decoder.layers)[: None if decoder.training else decoder.inference_layers]
    predictions = []
    for index, layer in enumerate(layers):
        if decoder.position is not None:
            position = decoder.position(state.reference, memory)
        content = layer(content, position, state.reference, queries, memory)
        state = decoder.refine(index, content, state)
        if not decoder.last_only or index == len(layers) - 1:
            predictions.append(decoder.predict(index, state))
    return tuple(predictions)


PredictBoxes = Callable[[Tensor, Tensor], Tensor]
"""Returns the boxes predicted by a head, given references and content."""


@runtime_checkable
class Refinement(Protocol):
    """How the references of a `ReferenceDecoder` change after a layer, and where gradients stop."""

    def __call__(
        self,
        reference: Float[Tensor, "B Q R"],
        boxes: Float[Tensor, "B Q 4"],
        content: Float[Tensor, "B Q D"],
        predict_boxes: PredictBoxes,
    ) -> tuple[Float[Tensor, "B Q R"], Float[Tensor, "B Q R"]]:
        """Return the references around which the next layer attends, and those to which its boxes are relative.

        Args:
            reference: References around which the layer attended.
            boxes: Boxes that it predicted.
            content: Its output, before the norm of the heads.
            predict_boxes: Calls the layer's box head.
        """


class KeepReference:
    """References do not change (Deformable DETR without refinement)."""

    def __call__(
        self,
        reference: Tensor,
        boxes: Tensor,  # noqa: ARG002 - protocol
        content: Tensor,  # noqa: ARG002 - protocol
        predict_boxes: PredictBoxes,  # noqa: ARG002 - protocol
    ) -> tuple[Tensor, Tensor]:
        """Return the references unchanged."""
        return reference, reference


class Refine:
    """The predicted boxes, detached, become the references (Deformable DETR, appendix A.4)."""

    def __call__(
        self,
        reference: Tensor,  # noqa: ARG002 - protocol
        boxes: Tensor,
        content: Tensor,  # noqa: ARG002 - protocol
        predict_boxes: PredictBoxes,  # noqa: ARG002 - protocol
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes, detached."""
        boxes = boxes.detach()
        return boxes, boxes


class LookForwardTwice:
    """The predicted boxes become the references; gradients of the next layer's boxes flow through them (DINO, 3.5).

    Gradients stop at the references around which the next layer attends, and at those from which the new ones are
    predicted.
    """

    def __call__(
        self,
        reference: Tensor,
        boxes: Tensor,  # noqa: ARG002 - protocol
        content: Tensor,
        predict_boxes: PredictBoxes,
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes predicted from content without the norm, detached and not detached."""
        refined = predict_boxes(reference, content)
        return refined.detach(), refined
