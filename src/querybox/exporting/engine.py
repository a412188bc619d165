"""An exported model as an engine: what `predict` and `evaluate` run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from querybox.errors import ConfigError
from querybox.exporting.card import Card
from querybox.inference.predict import Predictor
from querybox.structures import Category, DetectorOutput, ImageBatch, Predictions, Preprocessing

Answers = Mapping[str, Tensor]
"""What a file answers, by the names of `querybox.exporting.card.OUTPUTS`."""
Run = Callable[[UInt8[Tensor, "B 3 H W"], Int[Tensor, "B 2"]], Answers]
"""From ``pixels`` and ``sizes``, as `querybox.exporting.card.INPUTS` says, to all answers."""


class ExportedModel(Predictor):
    """A file that `querybox.export` wrote, ready to run on the CPU with as many threads as PyTorch uses.

    Attributes:
        card: What the file says of itself.
        run: Runs it.
    """

    def __init__(self, card: Card, run: Run) -> None:
        self.card = card
        self.run = run
        self.device = torch.device("cpu")

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes by label."""
        return self.card.categories

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the file's input: it is normalised there, so its pixels stay 0-255."""
        return dataclasses.replace(self.card.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def __call__(self, batch: ImageBatch) -> DetectorOutput:
        """Detect objects in a batch that was made with this engine's `preprocessing`.

        Raises:
            ConfigError: The batch is normalised already.
        """
        corner = batch.images[:, :, 0]
        if not torch.equal(corner, corner.round().clamp(0, 255)):
            raise ConfigError(
                "an exported model got normalised images; it normalises them itself: make the batch with "
                "ImageBatch.from_images(images, engine.preprocessing)"
            )
        answers = self.run(batch.images.to(torch.uint8), batch.sizes)
        return DetectorOutput(layers=(self.predictions(answers),))

    def predictions(self, answers: Answers) -> Predictions:
        """Return what the heads said."""
        return Predictions(
            logits=answers["logits"],
            boxes=answers["boxes"],
            no_object=self.card.no_object,
            class_rows=self.card.class_rows,
        )
