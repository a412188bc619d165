"""Deformable DETR (Zhu et al. 2020): several feature maps, and attention that looks at a few points of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, TypeVar

from torch import nn

from querybox.errors import ConfigError
from querybox.losses.classification import FocalLoss
from querybox.losses.criterion import Criterion
from querybox.losses.matcher import HungarianMatcher
from querybox.models.recipe import Depth, Positive, Recipe
from querybox.modules.decoder import DeformableDecoderLayer, ReferenceDecoder
from querybox.modules.detector import DetectionTransformer
from querybox.modules.encoder import DeformableEncoder, DeformableEncoderLayer
from querybox.modules.heads import DeltaHead, IndependentClassHead
from querybox.modules.neck import PyramidProjection
from querybox.modules.position import SinePositionEncoding
from querybox.modules.queries import PointQueries, Proposals, ProposedQueries
from querybox.structures import Category

Layer = TypeVar("Layer", DeformableEncoderLayer, DeformableDecoderLayer)


class DeformableDETR(Recipe):
    """The settings of Deformable DETR; the defaults are its ResNet-50 model."""

    kind: Literal["deformable_detr"] = "deformable_detr"
    feedforward: Positive = 1024
    queries: Positive = 300
    strides: tuple[Positive, ...] = (8, 16, 32)
    """Pixels a cell of the backbone's maps that are used, fine to coarse."""
    levels: Depth = 4
    """Maps in all; each beyond the backbone's is half as fine as the one before."""
    points: Positive = 4
    """Points that a head looks at in each map."""
    refine: bool = False
    """Whether every decoder layer measures its boxes from those of the layer before."""
    two_stage: bool = False
    """Whether queries are made of the encoder's best proposals; needs `refine`."""

    # Of the positional encoding, and of a cell's count in it.
    temperature: ClassVar[float] = 10000.0
    offset: ClassVar[float] = -0.5

    def build(self, categories: Sequence[Category]) -> DetectionTransformer:
        """Compose the detector; see `Recipe.build`."""
        if self.two_stage and not self.refine:
            raise ConfigError("setting 'two_stage' needs 'refine' to be true")
        if self.levels < len(self.strides):
            raise ConfigError(
                f"setting 'levels' is {self.levels}, less than the {len(self.strides)} 'strides'; "
                "name fewer strides or ask for more levels"
            )
        if self.width % 32:
            raise ConfigError(f"setting 'width' is {self.width}, which is no multiple of 32 (group norm)")
        classes = len(categories) + len(self.unused_rows)
        backbone = self.build_backbone(self.strides)
        return self.compose(
            backbone,
            PyramidProjection(backbone.channels, self.width, self.levels),
            DeformableEncoder(
                SinePositionEncoding(self.width, temperature=self.temperature, offset=self.offset),
                self.build_layers(DeformableEncoderLayer, self.encoder_layers),
                width=self.width,
                levels=self.levels,
            ),
            self.build_queries(classes),
            self.build_decoder(classes),
            denoising=self.build_denoising(classes),
            categories=categories,
        )

    def build_queries(self, classes: int) -> nn.Module:
        """Compose what the decoder starts from."""
        if not self.two_stage:
            return PointQueries(self.queries, self.width)
        proposals = Proposals(self.width, IndependentClassHead(self.width, classes), DeltaHead(self.width))
        return ProposedQueries(proposals, self.queries, self.width)

    def build_decoder(self, classes: int) -> ReferenceDecoder:
        """Compose the decoder; with `refine`, every layer has heads of its own."""
        heads = range(self.decoder_layers if self.refine else 1)
        # Points have no size yet: their first boxes are 12 % of the image.
        sizes = [-2.0 if head == 0 and not self.two_stage else 0.0 for head in heads]
        return ReferenceDecoder(
            self.build_layers(DeformableDecoderLayer, self.decoder_layers),
            [IndependentClassHead(self.width, classes) for _ in heads],
            [DeltaHead(self.width, size=size) for size in sizes],
            refinement="refine" if self.refine else "keep",
            norm=nn.Identity(),
        )

    def build_layers(self, kind: Callable[..., Layer], count: int) -> list[Layer]:
        """Compose the layers of the encoder or of the decoder."""
        sizes = (self.width, self.heads, self.levels, self.points, self.feedforward, self.dropout)
        return [kind(*sizes) for _ in range(count)]

    def build_denoising(self, classes: int) -> nn.Module | None:  # noqa: ARG002 - DINO's need it
        """Compose what makes denoising queries; here there are none."""
        return None

    def criterion(self) -> Criterion:
        """Judge every class by itself, by focal loss."""
        return Criterion(
            HungarianMatcher(2.0, 5.0, 2.0, classification=FocalLoss()),
            classification=FocalLoss(),
            class_weight=2.0,
            class_agnostic_proposals=True,
        )
