"""DINO (Zhang et al. 2022): Deformable DETR, mixed query selection, contrastive denoising and look forward twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from querybox.losses.classification import FocalLoss, MatchabilityLoss, VarifocalLoss
from querybox.losses.criterion import Criterion
from querybox.models.deformable_detr import DeformableDETR
from querybox.models.layouts.idea import IDEA
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.layouts.mmdet3 import MMDET3_DINO
from querybox.models.public import PublicWeights
from querybox.models.recipe import Positive, Queries
from querybox.modules.decoder import DeformableDecoderLayer, ReferenceDecoder
from querybox.modules.denoising import Denoising
from querybox.modules.heads import DeltaHead, SigmoidClassHead
from querybox.modules.position import SinePosition
from querybox.modules.queries import MixedQueries, RankByScore, RankPeaksFirst, TokenQueries
from querybox.modules.refinement import LookForwardTwice


class DINO(DeformableDETR):
    """The settings of DINO; the defaults are its ResNet-50 model with four feature levels."""

    title: ClassVar[str] = "DINO"
    training: ClassVar[Mapping[str, Any]] = {"epochs": 12, "milestones": (11,)}
    layouts: ClassVar[Mapping[PublicSystem, Layout]] = {"facebook": IDEA, "mmdet3": MMDET3_DINO}
    # The Hub has none in a layout of transformers.
    public_weights: ClassVar[Mapping[str, PublicWeights]] = {
        "dino-r50": PublicWeights(
            "https://download.openmmlab.com/mmdetection/v3.0/dino/dino-4scale_r50_8xb2-12e_coco/"
            "dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth",
            49.0,
            47,
            279,
        ),
    }
    identifying_tensor: ClassVar[str] = "decoder.position.layers.0"
    adaptable: ClassVar[frozenset[str]] = DeformableDETR.adaptable | {
        "denoising",
        "label_noise",
        "box_noise",
        "distinct",
        "varifocal",
        "matchability",
        "class_cost",
    }

    criterion_type: ClassVar[type[Criterion]] = Criterion
    varifocal_type: ClassVar[type[VarifocalLoss]] = VarifocalLoss

    kind: Literal["dino"] = "dino"  # type: ignore[assignment]
    feedforward: Positive = 2048
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    queries: Queries = 900
    refine: Literal[True] = True
    two_stage: Literal[True] = True
    share_heads: bool = True
    """Share one class head and one box head between all decoder layers."""
    denoising: Queries = 100
    """Approximate number of positive denoising queries in training, and of negative ones."""
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Twice the fraction of denoising queries that get a random class."""
    box_noise: Annotated[float, Field(ge=0)] = 1.0
    """Scale of the noise of their box corners, in units of half the box size."""
    distinct: bool = False
    """Select local maxima as proposals, and let queries attend only to queries of higher rank, because a decoder cannot
    learn from few images which of several queries on one object should detect it; see `RankPeaksFirst`."""
    varifocal: bool = False
    """Use varifocal loss, with the IoU of the box as the target score of a matched query."""
    matchability: bool = False
    """Use the matchability-aware loss of DEIM instead of varifocal or focal loss."""
    class_cost: Annotated[float, Field(ge=0)] | None = None
    """Weight of the class cost in matching; null for 2, or 6 if the target score of a matched query is its IoU, so that
    the same query stays matched."""
    token_content: bool = False
    """Use the tokens of the selected proposals as the content of queries, as RT-DETR does, rather than learned
    content."""

    denoising_padding: ClassVar[float] = 0.5
    """Coordinates of the boxes of padding queries in denoising; see `Denoising`."""
    temperature: ClassVar[float] = 20.0
    supported_arguments: ClassVar[Mapping[str, object]] = {
        "transformer_activation": "relu",
        "decoder_module_seq": ["sa", "ca", "ffn"],
        "pe_temperatureH": temperature,
        "pe_temperatureW": temperature,
    }
    offset: ClassVar[float] = 0.0

    def build_queries(self, classes: int) -> nn.Module:
        """Build the queries: references from proposals, learned content or that of their tokens."""
        proposals, ranking = self.build_proposals(classes), self.build_ranking()
        if self.token_content:
            return TokenQueries(proposals, self.queries, ranking=ranking)
        return MixedQueries(proposals, self.queries, self.width, ranking=ranking)

    def build_ranking(self) -> RankPeaksFirst | RankByScore:
        """Build the ranking of the proposals."""
        return RankPeaksFirst() if self.distinct else RankByScore()

    def build_decoder(self, classes: int) -> ReferenceDecoder:
        """Build the decoder, which computes the positions of queries from their references."""
        return ReferenceDecoder(
            self.build_layers(DeformableDecoderLayer, self.decoder_layers),
            *self.build_heads(classes),
            refinement=LookForwardTwice(),
            norm=nn.LayerNorm(self.width),
            position=SinePosition(self.width),
            eps=1e-3,
        )

    def build_heads(self, classes: int) -> tuple[list[SigmoidClassHead], list[DeltaHead]]:
        """Build the class heads and the box heads, one of each per layer or one for all."""
        heads = range(1 if self.share_heads else self.decoder_layers)
        class_heads = [self.class_head_type(self.width, classes) for _ in heads]
        return class_heads, [self.build_box_head() for _ in heads]

    def build_denoising(self, classes: int) -> nn.Module:
        """Build the denoising module."""
        return Denoising(
            self.width,
            classes,
            count=self.denoising,
            label_noise=self.label_noise,
            box_noise=self.box_noise,
            padding=self.denoising_padding,
        )

    def criterion(self) -> Criterion:
        """Return the criterion; the weight of the class loss is half that of the class cost or less."""
        default = 6.0 if self.varifocal or self.matchability else 2.0
        class_cost = default if self.class_cost is None else self.class_cost
        return self.criterion_type(
            self.build_matcher(class_cost, FocalLoss()),
            classification=self.build_classification_loss(),
            class_weight=1.0,
        )

    def build_classification_loss(self) -> FocalLoss:
        """Build the classification loss."""
        if self.matchability:
            return MatchabilityLoss()
        return self.varifocal_type() if self.varifocal else FocalLoss()

    @property
    def rows_by_class(self) -> tuple[str, ...]:
        """Modules whose tensors have one row per class: all class heads, and the labels of denoising."""
        return ("decoder.class_heads.*", "queries.proposals.class_head", "denoising.label")

    @property
    def rows_by_number(self) -> tuple[str, ...]:
        """None, because the class head of the proposals has one row per class."""
        return ()

    @property
    def rows_by_query(self) -> tuple[str, ...]:
        """Tensors with one row per query: the content, if it is learned."""
        return () if self.token_content else ("queries.content",)

    @classmethod
    def infer_specific(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings specific to DINO; see `Recipe.infer_specific`."""
        return {
            **cls.infer_levels(state, heads),
            "queries": len(state["queries.content"]),
            "share_heads": "decoder.class_heads.1.bias" not in state,
        }

    def published_strides(self) -> tuple[tuple[int, ...], ...]:
        """Return the strides of published models."""
        return (*super().published_strides(), (4, 8, 16, 32))
