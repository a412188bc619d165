"""The card of an exported file: all that a program needs to know to run it, as JSON in the file's metadata."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import TypeAdapter, ValidationError

from querybox import __version__
from querybox.errors import CheckpointError
from querybox.inference.engine import evaluating
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category, ImageBatch, Preprocessing

Precision = Literal["float32", "bf16", "int8"]

FORMAT = "querybox-export-1"
KEY = "querybox"
"""Under what name the card is in a file's metadata."""

INPUTS = {
    "pixels": "uint8 [B, 3, H, W]: RGB images, 0-255, resized, then padded right and below to one size",
    "sizes": "int64 [B, 2]: (height, width) of each image before padding, in pixels",
}
OUTPUTS = {
    "scores": "float32 [B, Q]: 0-1, descending",
    "labels": "int64 [B, Q]: place of the class in `categories`",
    "boxes_xyxy": "float32 [B, Q, 4]: left, top, right, bottom in pixels of the image as it was given",
    "logits": "float32 [B, Q, K]: every row of the class head; in the order of the queries. A softmax makes "
    "probabilities of them if `no_object` is true: the last row is 'no object'; else a sigmoid",
    "boxes": "float32 [B, Q, 4]: centre x, centre y, width, height, in 0-1 of the image; in the order of the queries",
}
"""What goes in and comes out, in this order; the same in every format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What an exported file says of itself."""

    categories: tuple[Category, ...]
    """The classes by label."""
    class_rows: tuple[int, ...]
    """The row of the class head that answers for each class, by label."""
    preprocessing: Preprocessing
    """How to resize an image; normalising it is part of the file, `mean` and `std` only tell how."""
    precision: Precision
    """What it was made to be computed in."""
    no_object: bool = True
    """Whether the last row of the class head is "no object", and its rows share one softmax."""

    @classmethod
    def of(cls, detector: DetectionTransformer, precision: Precision) -> Self:
        """Describe a detector; it is shown an empty image, for only its answer says how it judges classes."""
        blank = ImageBatch.from_images([torch.zeros(3, 64, 64, dtype=torch.uint8)], device=detector.device)
        with evaluating(detector), torch.inference_mode():
            answer = detector(blank).layers[-1]
        return cls(
            categories=detector.categories,
            class_rows=detector.class_rows,
            preprocessing=detector.preprocessing,
            precision=precision,
            no_object=answer.no_object,
        )

    def to_json(self) -> str:
        """Return the card, the contract of inputs and outputs included."""
        values = dataclasses.asdict(self)
        return json.dumps(
            {"format": FORMAT, "version": __version__, **values, "inputs": INPUTS, "outputs": OUTPUTS}
        )

    @classmethod
    def from_json(cls, text: str | None, where: object) -> Self:
        """Read what `to_json` wrote; `where` is the file, for the message.

        Raises:
            CheckpointError: There is no card, or none of this kind.
        """
        try:
            values: dict[str, Any] = json.loads(text or "{}")
        except ValueError as error:
            raise CheckpointError(f"{where}: corrupt, its card is no JSON ({error})") from error
        if values.get("format") != FORMAT:
            got = values.get("format", "a file without such a mark")
            raise CheckpointError(
                f"{where}: expected a model that querybox exported ('{FORMAT}'), got {got}; "
                "make one with querybox export"
            )
        try:
            names = [field.name for field in dataclasses.fields(cls) if field.name in values]
            return TypeAdapter(cls).validate_python({name: values[name] for name in names})
        except ValidationError as error:
            raise CheckpointError(f"{where}: corrupt, its card cannot be read ({error})") from error
