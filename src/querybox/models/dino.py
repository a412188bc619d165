"""DINO (Zhang et al. 2022): Deformable DETR with mixed queries, contrastive denoising, and a look forward twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from querybox.losses.classification import FocalLoss, VarifocalLoss
from querybox.losses.criterion import Criterion
from querybox.losses.matcher import HungarianMatcher
from querybox.models.deformable_detr import DeformableDETR
from querybox.models.layouts.idea import IDEA
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.layouts.mmdet3 import MMDET3_DINO
from querybox.models.recipe import Positive
from querybox.modules.decoder import DeformableDecoderLayer, LookForwardTwice, ReferenceDecoder
from querybox.modules.denoising import Denoising
from querybox.modules.heads import DeltaHead, SigmoidClassHead
from querybox.modules.position import SinePosition
from querybox.modules.queries import MixedQueries, Proposals, RankByScore, RankPeaksFirst


class DINO(DeformableDETR):
    """The settings of DINO; the defaults are its ResNet-50 model with four maps."""

    title: ClassVar[str] = "DINO"
    training: ClassVar[Mapping[str, Any]] = {"epochs": 12, "milestones": (11,)}
    layouts: ClassVar[Mapping[PublicSystem, Layout]] = {"facebook": IDEA, "mmdet3": MMDET3_DINO}
    mark: ClassVar[str] = "decoder.position.layers.0"
    adaptable: ClassVar[frozenset[str]] = DeformableDETR.adaptable | {
        "denoising",
        "label_noise",
        "box_noise",
        "distinct",
        "varifocal",
    }

    kind: Literal["dino"] = "dino"  # type: ignore[assignment]
    feedforward: Positive = 2048
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    queries: Positive = 900
    refine: bool = True
    two_stage: bool = True
    share_heads: bool = True
    """Whether one pair of heads serves all decoder layers."""
    denoising: Positive = 100
    """About how many denoising queries of each kind there are in training."""
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Half this share of the denoising queries is told a random class."""
    box_noise: Annotated[float, Field(ge=0)] = 1.0
    """How far their boxes' corners move, in halves of the box's size."""
    distinct: bool = False
    """Begin with proposals that no neighbour exceeds, and let queries see only those that rank before them: few images
    do not teach a decoder which of ten queries at one object is to speak for it."""
    varifocal: bool = False
    """Ask a matched query how well its box fits, and not for 1, and match by the class more than by the box: the best
    of several queries at one object then remains the best."""

    temperature: ClassVar[float] = 20.0
    offset: ClassVar[float] = 0.0

    def build_queries(self, classes: int) -> nn.Module:
        """Compose what the decoder starts from: proposed references, learned content."""
        proposals = Proposals(self.width, SigmoidClassHead(self.width, classes), DeltaHead(self.width))
        return MixedQueries(
            proposals, self.queries, self.width, ranking=RankPeaksFirst() if self.distinct else RankByScore()
        )

    def build_decoder(self, classes: int) -> ReferenceDecoder:
        """Compose the decoder, which makes the queries' positions of their references."""
        heads = range(1 if self.share_heads else self.decoder_layers)
        return ReferenceDecoder(
            self.build_layers(DeformableDecoderLayer, self.decoder_layers),
            [SigmoidClassHead(self.width, classes) for _ in heads],
            [DeltaHead(self.width) for _ in heads],
            refinement=LookForwardTwice(),
            norm=nn.LayerNorm(self.width),
            position=SinePosition(self.width),
            eps=1e-3,
        )

    def build_denoising(self, classes: int) -> nn.Module:
        """Compose what makes denoising queries."""
        return Denoising(
            self.width, classes, count=self.denoising, label_noise=self.label_noise, box_noise=self.box_noise
        )

    def criterion(self) -> Criterion:
        """Weigh the classes by half of what the matcher does, or less; proposals have to say the class."""
        return Criterion(
            HungarianMatcher(6.0 if self.varifocal else 2.0, 5.0, 2.0, classification=FocalLoss()),
            classification=VarifocalLoss() if self.varifocal else FocalLoss(),
            class_weight=1.0,
        )

    @property
    def rows_by_class(self) -> tuple[str, ...]:
        """Modules whose tensors have a row for each class: all heads, and the labels of denoising."""
        return ("decoder.class_heads.*", "queries.proposals.class_head", "denoising.label")

    @property
    def rows_by_number(self) -> tuple[str, ...]:
        """None: the proposals' head says the class."""
        return ()

    @property
    def rows_by_query(self) -> tuple[str, ...]:
        """Tensors with a row for each query: its content."""
        return ("queries.content",)

    @classmethod
    def infer_own(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Return the settings that only DINO has, or shows in this way."""
        return {
            **cls.infer_pyramid(state, heads),
            "queries": len(state["queries.content"]),
            "share_heads": "decoder.class_heads.1.bias" not in state,
        }

    def known_strides(self) -> tuple[tuple[int, ...], ...]:
        """Return the strides that published models have."""
        return (*super().known_strides(), (4, 8, 16, 32))

    def unknown_to(self, layout: Layout) -> list[str]:
        """Name the settings whose value does not exist in the layout's system."""
        return [*super().unknown_to(layout), *(["distinct"] if self.distinct else [])]
