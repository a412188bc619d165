"""Conditional DETR (Meng et al. 2021): DETR with reference points and conditional cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from querybox.losses.classification import FocalLoss
from querybox.losses.criterion import Criterion
from querybox.models.layouts.conditional import ATTEN4VIS, HUGGINGFACE_CONDITIONAL, MMDET3_CONDITIONAL
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.public import PublicWeights
from querybox.models.recipe import Queries
from querybox.models.single_map import SingleMap
from querybox.modules.conditional_decoder import (
    ConditionalDecoder,
    ConditionalDecoderLayer,
    FirstSpatialKey,
    FirstSpatialQuery,
    SpatialKey,
    SpatialQuery,
)
from querybox.modules.detector import DetectionTransformer
from querybox.modules.encoder import Encoder
from querybox.modules.heads import DeltaHead, SigmoidClassHead
from querybox.modules.neck import InputProjection
from querybox.modules.queries import ConditionalQueries
from querybox.structures import Category


class ConditionalDETR(SingleMap):
    """The settings of Conditional DETR; the defaults are its ResNet-50 model."""

    title: ClassVar[str] = "Conditional DETR"
    training: ClassVar[Mapping[str, Any]] = {"epochs": 50, "milestones": (40,)}
    layouts: ClassVar[Mapping[PublicSystem, Layout]] = {
        "facebook": ATTEN4VIS,
        "mmdet3": MMDET3_CONDITIONAL,
        "huggingface": HUGGINGFACE_CONDITIONAL,
    }
    public_weights: ClassVar[Mapping[str, PublicWeights]] = {
        "conditional-detr-r50": PublicWeights("hf://microsoft/conditional-detr-resnet-50", 41.0, 44, 90),
    }
    identifying_tensor: ClassVar[str] = "decoder.query_scale.0"
    class_head: ClassVar[str] = "decoder.class_head"
    class_head_type: ClassVar[type[SigmoidClassHead]] = SigmoidClassHead
    steps_to_learn: ClassVar[int] = 500  # a tenth of DETR's, like its number of epochs on COCO
    huggingface_prefix: ClassVar[str] = "ConditionalDetr"
    huggingface_type: ClassVar[str] = "conditional_detr"
    huggingface_processor: ClassVar[str] = "ConditionalDetrImageProcessor"
    huggingface_supported: ClassVar[Mapping[str, object]] = {
        **SingleMap.huggingface_supported,
        "auxiliary_loss": False,  # if True, transformers also normalises between layers
    }

    kind: Literal["conditional_detr"] = "conditional_detr"
    queries: Queries = 300

    def build(self, categories: Sequence[Category]) -> DetectionTransformer:
        """Build the detector; see `Recipe.build`."""
        backbone = self.build_backbone((self.stride,), dilation=self.dilation)
        encoder = Encoder(
            self.build_position(),
            layers=self.encoder_layers,
            width=self.width,
            heads=self.heads,
            feedforward=self.feedforward,
            dropout=self.dropout,
        )
        decoder = ConditionalDecoder(
            [self.build_layer(index) for index in range(self.decoder_layers)],
            self.class_head_type(self.width, self.num_rows(categories)),
            DeltaHead(self.width),
            width=self.width,
        )
        return self.compose(
            backbone,
            InputProjection(self.neck_channels(backbone), self.width),
            encoder,
            ConditionalQueries(self.queries, self.width),
            decoder,
            categories=categories,
        )

    def build_layer(self, index: int) -> ConditionalDecoderLayer:
        """Build a decoder layer. The first uses the learned positions, because the content of its queries is zero."""
        query, key = (SpatialQuery, SpatialKey) if index else (FirstSpatialQuery, FirstSpatialKey)
        return ConditionalDecoderLayer(
            query(self.width, self.heads),
            key(self.width, self.heads),
            width=self.width,
            heads=self.heads,
            feedforward=self.feedforward,
            dropout=self.dropout,
        )

    def criterion(self) -> Criterion:
        """Return the criterion, with focal loss for each class."""
        return Criterion(
            self.build_matcher(2.0, FocalLoss()),
            classification=FocalLoss(),
            class_weight=2.0,
        )
