"""The card of an exported model: JSON in the file's metadata with everything a program needs to run it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import TypeAdapter, ValidationError

from querybox import __version__
from querybox.arguments import require_size
from querybox.data.parsing import validation_problem
from querybox.errors import CheckpointError, ConfigError
from querybox.inference.engine import evaluating
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category, ImageBatch, Preprocessing
from querybox.text import listed

ExportedPrecision = Literal["float32", "bf16", "fp16", "int8"]

FORMAT = "querybox-export-1"
EXPORT_AGAIN = "export it again with querybox export, or get the original file"
KEY = "querybox"
"""Key of the card in the metadata of a file."""

INPUTS = {
    "pixels": "uint8 [B, 3, H, W]: RGB images, 0-255, resized, then padded at the right and bottom to a common size",
    "sizes": "int64 [B, 2]: (height, width) of each image before padding, in pixels",
}
OUTPUTS = {
    "scores": "float32 [B, Q]: 0-1, descending",
    "labels": "int64 [B, Q]: index of the class in `categories`",
    "boxes_xyxy": "float32 [B, Q, 4]: left, top, right, bottom in pixels of the input image before padding",
    "logits": "float32 [B, Q, K]: raw outputs of the class head, in query order. If `no_object` is true, the last "
    "one is the 'no object' class and a softmax gives the probabilities; otherwise a sigmoid does",
    "boxes": "float32 [B, Q, 4]: centre x, centre y, width, height in 0-1 of the image, in query order",
}
"""Inputs and outputs by name, in order; the same in every format."""
MASK_OUTPUTS = {
    "queries": "int64 [B, M]: index of the query of each of the M highest-scoring detections in `logits` and `boxes`",
    "masks": "float32 [B, M, H/4, W/4]: mask logits of these detections, in the order of `scores`: positive where the "
    "object is. Sides are rounded up, and a cell has 4 x 4 pixels of the padded input image. Masks are cut to boxes",
}
"""The further outputs of a detector with masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Metadata of an exported model."""

    categories: tuple[Category, ...]
    """The classes by label."""
    class_rows: tuple[int, ...]
    """The row of the class head of each class, by label."""
    preprocessing: Preprocessing
    """How to resize an image. Normalisation with `mean` and `std` is part of the model."""
    precision: ExportedPrecision
    """Precision in which to compute the model."""
    no_object: bool = True
    """Whether the last row of the class head is the "no object" class and probabilities are a softmax over all rows."""
    masks: bool = False
    """Whether the model has masks, which are further outputs."""
    size: tuple[int, int] | None = None
    """(height, width) of `pixels`, of which there is one image at a time; None for batches and images of any size."""
    min_side: int = 1
    """Smallest height and width of `pixels` of any size, in pixels, to which thinner images have to be padded. 1 for a
    fixed size, and for files of version 0.1, which do not state it."""

    def __post_init__(self) -> None:
        """Check that every class has a row of its own, and the size.

        Raises:
            ConfigError: There is no class, a row is missing, negative or repeated, or the size is out of range.
        """
        if self.size is not None:
            require_size("the card", self.size)
        if not 0 < len(self.categories) == len(set(self.class_rows)) == len(self.class_rows):
            raise ConfigError(
                f"got {len(self.categories)} categories and the class_rows {listed(self.class_rows)}; expected a "
                "different row for each"
            )
        if min(self.class_rows) < 0:
            raise ConfigError(f"got the class_rows {listed(self.class_rows)}; expected 0 or more")

    @property
    def padded(self) -> bool:
        """Whether images may be padded. Those that are stretched fill a fixed size."""
        return self.size is None or self.preprocessing.resizing != "stretch"

    @property
    def inputs(self) -> dict[str, str]:
        """The inputs by name, in order, and what they are."""
        if self.size is None:
            return INPUTS
        height, width = self.size
        filled = f"padded at the right and bottom to {height}x{width}" if self.padded else "not padded"
        return {
            "pixels": f"uint8 [1, 3, {height}, {width}]: an RGB image, 0-255, resized, {filled}",
            "sizes": "int64 [1, 2]: (height, width) of the image before padding, in pixels",
        }

    @property
    def outputs(self) -> dict[str, str]:
        """The outputs by name, in order, and what they are."""
        return {**OUTPUTS, **MASK_OUTPUTS} if self.masks else OUTPUTS

    @classmethod
    def of(
        cls, detector: DetectionTransformer, precision: ExportedPrecision, size: tuple[int, int] | None = None
    ) -> Self:
        """Describe a detector. Runs it on a blank image, because only its predictions tell `no_object` and `masks`.

        Args:
            detector: The model.
            precision: Precision in which to compute it.
            size: Fixed (height, width) of the images, to which the preprocessing is adapted; None for any size.
        """
        blank = ImageBatch.from_images([torch.zeros(3, 64, 64, dtype=torch.uint8)], device=detector.device)
        with evaluating(detector), torch.inference_mode():
            predictions = detector(blank).layers[-1]
        return cls(
            categories=detector.categories,
            class_rows=detector.class_rows,
            preprocessing=resized_to_fit(detector.preprocessing, size),
            precision=precision,
            no_object=predictions.no_object,
            masks=predictions.masks is not None,
            size=size,
        )

    def to_json(self) -> str:
        """Return the card as JSON, including the descriptions of inputs and outputs."""
        values = dataclasses.asdict(self)
        return json.dumps(
            {
                "format": FORMAT,
                "version": __version__,
                **values,
                "inputs": self.inputs,
                "outputs": self.outputs,
            }
        )

    @classmethod
    def from_json(cls, text: str | None, where: object) -> Self:
        """Parse the output of `to_json`.

        Args:
            text: The JSON, or None if the file has no card.
            where: The file, named in errors.

        Raises:
            CheckpointError: The card is missing, corrupt or of another format.
        """
        try:
            values: dict[str, Any] = json.loads(text or "{}")
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{where}: corrupt, its card is not JSON ({error}); {EXPORT_AGAIN}"
            ) from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{where}: corrupt, its card is not a JSON object; {EXPORT_AGAIN}")
        if values.get("format") != FORMAT:
            got = values.get("format", "a file without a card")
            raise CheckpointError(
                f"{where}: expected a model that querybox exported ('{FORMAT}'), got {got}; {EXPORT_AGAIN}"
            )
        try:
            names = [field.name for field in dataclasses.fields(cls) if field.name in values]
            return TypeAdapter(cls).validate_python({name: values[name] for name in names})
        except ValidationError as error:
            problem = validation_problem(error)
            raise CheckpointError(
                f"{where}: corrupt, its card cannot be read ({problem}); {EXPORT_AGAIN}"
            ) from error


def resized_to_fit(preprocessing: Preprocessing, size: tuple[int, int] | None) -> Preprocessing:
    """Return a preprocessing that resizes images of the orientation of `size` to at most this (height, width)."""
    if size is None:
        return preprocessing
    if preprocessing.resizing == "stretch":
        return dataclasses.replace(preprocessing, short_side=size[0], long_side=size[1])
    return dataclasses.replace(
        preprocessing,
        short_side=min(preprocessing.short_side, *size),
        long_side=min(preprocessing.long_side, max(size)),
        # facebookresearch's long side may exceed its limit by a pixel; ours is the same otherwise.
        resizing="querybox" if preprocessing.resizing == "facebook" else preprocessing.resizing,
    )
