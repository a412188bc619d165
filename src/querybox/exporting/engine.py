"""An exported model as an engine, for `predict` and `evaluate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from querybox.errors import ConfigError
from querybox.exporting.card import Card
from querybox.exporting.signature import check_outputs
from querybox.inference.engine import Predictor
from querybox.structures import Category, DetectorOutput, ImageBatch, Predictions, Preprocessing

Outputs = Mapping[str, Tensor]
"""The outputs of an exported model, by the names of `querybox.exporting.card.OUTPUTS`."""
Runner = Callable[[UInt8[Tensor, "B 3 H W"], Int[Tensor, "B 2"]], Outputs]
"""Runs an exported model on ``pixels`` and ``sizes``, see `querybox.exporting.card.INPUTS`."""


class ExportedModel(Predictor):
    """A model exported by `querybox.export`, run on the CPU with the number of threads that PyTorch uses.

    Attributes:
        card: The metadata of the file.
        run: Runs the model.
    """

    def __init__(self, card: Card, run: Runner) -> None:
        self.card = card
        self.run = run
        self.device = torch.device("cpu")

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes by label."""
        return self.card.categories

    @property
    def preprocessing(self) -> Preprocessing:
        """How to resize images; without normalisation, which is part of the model, so pixels stay 0-255."""
        return dataclasses.replace(self.card.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def __call__(self, batch: ImageBatch) -> DetectorOutput:
        """Run the model on a batch made with this engine's `preprocessing`.

        Raises:
            ConfigError: The images are already normalised.
            CheckpointError: The outputs do not fit the card.
        """
        corner = batch.images[:, :, 0]
        if not torch.equal(corner, corner.round().clamp(0, 255)):
            raise ConfigError(
                "an exported model got normalised images, but it normalises them itself; make the batch with "
                "ImageBatch.from_images(images, engine.preprocessing)"
            )
        outputs = self.run(batch.images.to(torch.uint8), batch.sizes)
        check_outputs("the exported model", self.card, outputs, len(batch.images))
        return DetectorOutput(layers=(self.predictions(outputs),))

    def predictions(self, outputs: Outputs) -> Predictions:
        """Return the raw predictions in the outputs of the model."""
        return Predictions(
            logits=outputs["logits"],
            boxes=outputs["boxes"],
            no_object=self.card.no_object,
            class_rows=self.card.class_rows,
        )
