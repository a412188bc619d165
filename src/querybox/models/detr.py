"""DETR (Carion et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from torch import nn

from querybox.errors import ConfigError
from querybox.models.recipe import Positive, Recipe
from querybox.modules.decoder import Decoder, look_alike
from querybox.modules.detector import DetectionTransformer
from querybox.modules.encoder import Encoder
from querybox.modules.heads import BoxHead, ClassHead
from querybox.modules.neck import InputProjection
from querybox.modules.position import LearnedPositionEncoding, SinePositionEncoding, fine_encoding
from querybox.modules.queries import LearnedQueries, PlacedQueries
from querybox.structures import Category


class Transformer(TypedDict):
    """What encoder and decoder layers have in common."""

    width: int
    heads: int
    feedforward: int
    dropout: float
    norm_first: bool


class DETR(Recipe):
    """The settings of DETR; the defaults are its ResNet-50 model."""

    kind: Literal["detr"] = "detr"
    stride: Positive = 32
    """Pixels a cell of the feature map that the encoder sees."""
    dilation: bool = False
    """Dilate the backbone's last stage (DC5); its stride is then 16."""
    position: Literal["sine", "learned"] = "sine"
    norm_first: bool = False
    """Normalise before each block (pre-norm) instead of after it."""
    norm_between: bool = False
    """Normalise between the decoder's layers, too, as transformers does where its ``auxiliary_loss`` is set."""
    local_start: bool = False
    """Begin with queries that each look at a place of their own, as small data needs; see `PlacedQueries`."""

    def build(self, categories: Sequence[Category]) -> DetectionTransformer:
        """Compose the detector; see `Recipe.build`."""
        if self.local_start and self.position != "sine":
            raise ConfigError(f"setting 'local_start' needs position 'sine', got '{self.position}'")
        backbone = self.build_backbone((self.stride,), dilation=self.dilation)
        transformer = Transformer(
            width=self.width,
            heads=self.heads,
            feedforward=self.feedforward,
            dropout=self.dropout,
            norm_first=self.norm_first,
        )
        neck = InputProjection(backbone.channels, self.width)
        fine = fine_encoding(self.width) if self.local_start else None
        encoder = Encoder(fine or self.build_position(), layers=self.encoder_layers, **transformer)
        queries = PlacedQueries(self.queries, fine) if fine else LearnedQueries(self.queries, self.width)
        decoder = Decoder(
            ClassHead(self.width, len(categories) + len(self.unused_rows)),
            BoxHead(self.width),
            layers=self.decoder_layers,
            norm_between=self.norm_between,
            **transformer,
        )
        if self.local_start:
            look_alike(decoder)
        return self.compose(backbone, neck, encoder, queries, decoder, categories=categories)

    def build_position(self) -> nn.Module:
        """Compose the positional encoding."""
        return {"sine": SinePositionEncoding, "learned": LearnedPositionEncoding}[self.position](self.width)
