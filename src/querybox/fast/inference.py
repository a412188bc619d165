"""The optimised copy of a detector."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from querybox.errors import CheckpointError, ConfigError
from querybox.fast.backbone import fuse
from querybox.fast.convolution import use_onednn
from querybox.fast.deformable import FastDeformableEncoder, LastReferenceAnswer
from querybox.fast.transformer import FastEncoder, LastAnswer
from querybox.inference.engine import Engine, evaluating
from querybox.inference.predict import Predictor
from querybox.modules.backbone import Backbone
from querybox.modules.decoder import Decoder, ReferenceDecoder
from querybox.modules.detector import DetectionTransformer
from querybox.modules.encoder import DeformableEncoder, Encoder
from querybox.structures import DetectorOutput, ImageBatch

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def optimize(
    detector: DetectionTransformer,
    *,
    dtype: torch.dtype = torch.float32,
    compile: bool = False,  # noqa: A002 - torch's word
) -> OptimizedDetector:
    """Return a copy of `detector` that detects the same, faster; see `Detector.optimize`."""
    if dtype not in TYPES:
        known = ", ".join(map(str, TYPES))
        raise ConfigError(f"optimize got dtype={dtype}; expected one of {known}")
    return OptimizedDetector(detector, dtype=dtype, compiled=compile)


class OptimizedDetector(Predictor):
    """A detector for inference alone: an `Engine` with a copy of the weights, on the device where they were.

    It cannot be trained, moved or saved; do that with the detector that it was made from, and make another.

    Attributes:
        categories: The classes by label, 0 ... C-1.
        preprocessing: How an image becomes the model's input.
        device: Where the input has to be.
        dtype: What it computes in.
    """

    def __init__(self, detector: DetectionTransformer, *, dtype: torch.dtype, compiled: bool) -> None:
        """Copy `detector`, whose mode does not matter; see `Detector.optimize`."""
        self.categories = detector.categories
        self.class_rows = detector.class_rows
        self.preprocessing = detector.preprocessing
        self.device = detector.device
        self.dtype = dtype
        with evaluating(detector):
            body = detector.backbone.body if isinstance(detector.backbone, Backbone) else None
            backbone = copy.deepcopy(detector.backbone) if body is None else fuse(body)
            neck, encoder, self.queries, decoder = copy.deepcopy(
                (detector.neck, detector.encoder, detector.queries, detector.decoder)
            )
        self.backbone = backbone.to(dtype).to(memory_format=torch.channels_last)
        self.neck = neck.to(dtype).to(memory_format=torch.channels_last)
        self.encoder = fast_encoder(encoder, dtype)
        self.decoder = fast_decoder(decoder, dtype)
        for part in (self.backbone, self.neck, self.encoder, self.queries, self.decoder):
            part.requires_grad_(requires_grad=False)
            if not compiled:
                use_onednn(part)
        if compiled:
            self.compile()

    def compile(self) -> None:
        """Compile what takes the time, for all sizes at once; positions and masks are made outside of it.

        Deformable attention is left out: it would be compiled for each size.
        """
        self.backbone.compile(dynamic=True)
        if not isinstance(self.decoder, LastReferenceAnswer):
            self.decoder.compile(dynamic=True)
        if isinstance(self.encoder, FastEncoder):
            self.encoder.refine = torch.compile(self.encoder.refine, dynamic=True)  # type: ignore[method-assign]

    @torch.inference_mode()
    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        """Detect objects in a batch; the last decoder layer alone answers."""
        features = self.backbone(batch.images.to(self.dtype, memory_format=torch.channels_last))
        features = self.neck(features)  # maps [B, D, h, w]
        knows = isinstance(self.encoder, FastEncoder | FastDeformableEncoder)
        padding_mask = None if knows and not batch.padded else batch.padding_mask
        memory = self.encoder(features, padding_mask)  # tokens [B, S, D]
        queries = self.queries(replace(memory, tokens=memory.tokens.float()))  # [B, Q, D]
        content, position = queries.content.to(self.dtype), queries.position.to(self.dtype)
        layers = self.decoder(replace(queries, content=content, position=position), memory)
        return DetectorOutput.of(layers, queries, self.class_rows)

    def save(self, path: str | Path, **_: object) -> NoReturn:
        """Refuse: folded weights are nothing that could be trained or loaded again.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"{path}: an optimised copy cannot be saved, its weights are folded; "
            "save the detector that it was made from"
        )


def fastest(engine: Engine) -> Engine:
    """Return the optimised copy of a detector; anything else is returned as it is."""
    return optimize(engine) if isinstance(engine, DetectionTransformer) else engine


def fast_encoder(encoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Make an encoder fast; one of somebody's own is only brought to the type."""
    if isinstance(encoder, Encoder):
        return FastEncoder(encoder, dtype)
    if isinstance(encoder, DeformableEncoder):
        return FastDeformableEncoder(encoder, dtype)
    return encoder.to(dtype)


def fast_decoder(decoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Make a decoder fast; one of somebody's own is only brought to the type."""
    if isinstance(decoder, Decoder):
        return LastAnswer(decoder, dtype)
    if isinstance(decoder, ReferenceDecoder):
        return LastReferenceAnswer(decoder, dtype)
    return decoder.to(dtype)
