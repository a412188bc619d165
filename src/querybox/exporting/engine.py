"""An exported model as an engine, for `predict` and `evaluate`."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from querybox.errors import ConfigError
from querybox.exporting.card import Card
from querybox.exporting.signature import check_outputs
from querybox.inference.fitting import wrong_size
from querybox.inference.predictor import Predictor
from querybox.mask_embeddings import MaskLogits
from querybox.structures import Category, DetectorOutput, ImageBatch, Predictions, Preprocessing

Outputs = Mapping[str, Tensor]
"""The outputs of an exported model, by the names of `querybox.exporting.card.Card.outputs`."""
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
        self.run = padding_thin_images(run, card.min_side) if card.size is None else at_fixed_size(run, card)
        self.device = torch.device("cpu")

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied, which the sessions of the engines cannot be.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "an exported model cannot be pickled or copied; load its file in each process with querybox.load"
        )

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes by label."""
        return self.card.categories

    @property
    def preprocessing(self) -> Preprocessing:
        """How to resize images; without normalisation, which is part of the model, so pixels stay 0-255."""
        return dataclasses.replace(self.card.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    @property
    def max_size(self) -> tuple[int, int] | None:
        """Maximum (height, width) of resized images in pixels; None if they may have any size, or all have the same."""
        return self.card.size if self.card.padded else None

    def __call__(self, batch: ImageBatch) -> DetectorOutput:
        """Run the model on a batch made with this engine's `preprocessing`.

        Raises:
            ConfigError: The images are already normalised.
            CheckpointError: The outputs do not fit the card.
        """
        pixels = batch.images.to(torch.uint8)
        rows = batch.images[:, :, ::16]  # the first ones may be black, as of a film
        if not torch.equal(pixels[:, :, ::16].to(rows), rows):
            raise ConfigError(
                "an exported model got normalised images, but it normalises them itself; make the batch with "
                "ImageBatch.from_images(images, engine.preprocessing)"
            )
        outputs = self.run(pixels, batch.sizes)
        check_outputs("the exported model", self.card, outputs, len(batch.images))
        return DetectorOutput(layers=(self.predictions(outputs),))

    def predictions(self, outputs: Outputs) -> Predictions:
        """Return the raw predictions in the outputs of the model."""
        masks = None
        if self.card.masks:
            queries = outputs["logits"].shape[1]
            masks = MaskLogits.of(outputs["masks"], outputs["queries"], queries)
        return Predictions(
            logits=outputs["logits"],
            boxes=outputs["boxes"],
            no_object=self.card.no_object,
            class_rows=self.card.class_rows,
            masks=masks,
        )


def one_at_a_time(run: Runner) -> Runner:
    """Return a runner for one thread at a time, because the engine has a single set of inputs and outputs."""
    lock = threading.Lock()

    def run_alone(pixels: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]) -> Outputs:
        with lock:
            return run(pixels, sizes)

    return run_alone


def padding_thin_images(run: Runner, min_side: int) -> Runner:
    """Return a runner that pads images with a side below `min_side` pixels, for which the trace is not valid."""

    def run_padded(pixels: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]) -> Outputs:
        below, right = (max(0, min_side - side) for side in pixels.shape[2:])
        return run(F.pad(pixels, (0, right, 0, below)), sizes)

    return run_padded


def at_fixed_size(run: Runner, card: Card) -> Runner:
    """Return a runner for batches of a model that takes one image of a fixed size.

    Smaller images are padded, unless the model has no padding mask.
    """

    def run_each(pixels: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"]) -> Outputs:
        padded = pad_to(pixels, sizes, card)
        answers = [run(*image) for image in zip(padded.split(1), sizes.split(1), strict=True)]
        return {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}

    return run_each


def pad_to(
    pixels: UInt8[Tensor, "B 3 H W"], sizes: Int[Tensor, "B 2"], card: Card
) -> UInt8[Tensor, "B 3 h w"]:
    """Pad images to the fixed size of a model.

    Raises:
        ConfigError: They are larger, or smaller although the model takes no padded images.
    """
    assert card.size is not None
    height, width = card.size
    below, right = height - pixels.shape[2], width - pixels.shape[3]
    if min(below, right) < 0 or not (card.padded or (sizes == torch.tensor(card.size)).all()):
        raise ConfigError(wrong_size(map(tuple, sizes.tolist()), card.size, padded=card.padded))
    return F.pad(pixels, (0, right, 0, below))
