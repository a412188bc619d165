"""Deformable DETR (Zhu et al. 2020): several feature maps, and attention to a few points of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor, nn

from querybox.errors import ConfigError
from querybox.losses.classification import FocalLoss
from querybox.losses.criterion import Criterion
from querybox.models.layouts.fundamentalvision import FUNDAMENTALVISION
from querybox.models.layouts.huggingface import HUGGINGFACE_DEFORMABLE
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.layouts.mmdet3 import MMDET3_DEFORMABLE
from querybox.models.layouts.relatives import FULLY_PROPOSED
from querybox.models.public import PublicWeights
from querybox.models.recipe import Depth, Positive, Queries, Recipe
from querybox.models.tensors import count, deepest_channels
from querybox.models.unseen import Unseen
from querybox.modules.decoder import DeformableDecoderLayer, ReferenceDecoder
from querybox.modules.detector import DetectionTransformer
from querybox.modules.encoder import DeformableEncoder, DeformableEncoderLayer
from querybox.modules.heads import DeltaHead, SigmoidClassHead
from querybox.modules.neck import PyramidProjection
from querybox.modules.position import SinePositionEncoding
from querybox.modules.queries import PointQueries, Proposals, ProposedQueries
from querybox.modules.refinement import KeepReference, Refine
from querybox.structures import Category

Layer = TypeVar("Layer", DeformableEncoderLayer, DeformableDecoderLayer)


class DeformableDETR(Recipe):
    """The settings of Deformable DETR; the defaults are its ResNet-50 model."""

    title: ClassVar[str] = "Deformable DETR"
    training: ClassVar[Mapping[str, Any]] = {
        "epochs": 50,
        "milestones": (40,),
        "batch_size": 32,
        "lr": 2e-4,
        "backbone_lr": 2e-5,
        "sampling_lr": 2e-5,
    }
    layouts: ClassVar[Mapping[PublicSystem, Layout]] = {
        "facebook": FUNDAMENTALVISION,
        "mmdet3": MMDET3_DEFORMABLE,
        "huggingface": HUGGINGFACE_DEFORMABLE,
    }
    public_weights: ClassVar[Mapping[str, PublicWeights]] = {
        "deformable-detr-r50": PublicWeights("hf://SenseTime/deformable-detr", 44.5, 40, 173),
        "deformable-detr-r50-single-scale": PublicWeights(
            "hf://SenseTime/deformable-detr-single-scale", 39.4, 34, 78
        ),
        "deformable-detr-r50-refine": PublicWeights(
            "hf://SenseTime/deformable-detr-with-box-refine", 46.2, 41, 173
        ),
        "deformable-detr-r50-two-stage": PublicWeights(
            "hf://SenseTime/deformable-detr-with-box-refine-two-stage", 46.9, 41, 173
        ),
    }
    identifying_tensor: ClassVar[str] = "encoder.level"
    class_head: ClassVar[str] = "decoder.class_heads.0"
    class_head_type: ClassVar[type[SigmoidClassHead]] = SigmoidClassHead
    steps_to_learn: ClassVar[int] = 500
    unseen: ClassVar[Mapping[str, Unseen]] = {
        **Recipe.unseen,
        "queries": Unseen("{} queries, selected from as many proposals"),
    }
    neck_convolution: ClassVar[str] = "0"
    """Name of the convolution in a projection of the neck."""
    huggingface_prefix: ClassVar[str] = "DeformableDetr"
    huggingface_type: ClassVar[str] = "deformable_detr"
    huggingface_processor: ClassVar[str] = "DeformableDetrImageProcessor"
    huggingface_names: ClassVar[Mapping[str, str]] = {
        **Recipe.huggingface_names,
        "queries": "two_stage_num_proposals",
    }
    huggingface_supported: ClassVar[Mapping[str, object]] = {
        **Recipe.huggingface_supported,
        "position_embedding_type": "sine",
    }

    kind: Literal["deformable_detr"] = "deformable_detr"
    feedforward: Positive = 1024
    queries: Queries = 300
    strides: tuple[Positive, ...] = (8, 16, 32)
    """Strides in pixels of the backbone's feature maps, fine to coarse."""
    levels: Depth = 4
    """Number of feature levels; each one beyond the backbone's has twice the stride of the one before."""
    points: Depth = 4
    """Sampling points of each head in each level."""
    refine: bool = False
    """Iterative box refinement: each decoder layer predicts boxes relative to those of the layer before."""
    two_stage: bool = False
    """Make queries from the encoder's highest-scoring proposals; requires `refine`."""

    offset: ClassVar[float] = -0.5

    @property
    def refines_boxes(self) -> bool:
        """See `Recipe.refines_boxes`."""
        return self.refine

    def build(self, categories: Sequence[Category]) -> DetectionTransformer:
        """Build the detector; see `Recipe.build`."""
        if self.two_stage and not self.refine:
            raise ConfigError("setting 'two_stage' requires 'refine' to be true")
        if self.levels < len(self.strides):
            raise ConfigError(
                f"setting 'levels' is {self.levels}, less than the number of 'strides', {len(self.strides)}; "
                "use fewer strides or more levels"
            )
        classes = self.num_rows(categories)
        backbone = self.build_backbone(self.strides)
        return self.compose(
            backbone,
            self.build_neck(self.neck_channels(backbone)),
            self.build_encoder(),
            self.build_queries(classes),
            self.build_decoder(classes),
            denoising=self.build_denoising(classes),
            categories=categories,
        )

    def build_neck(self, channels: list[int]) -> nn.Module:
        """Build the neck, for feature maps with these channels."""
        if self.width % 32:
            raise ConfigError(f"setting 'width' is {self.width}, expected a multiple of 32 (group norm)")
        return PyramidProjection(channels, self.width, self.levels)

    def build_encoder(self) -> nn.Module:
        """Build the encoder."""
        return DeformableEncoder(
            SinePositionEncoding(self.width, temperature=self.temperature, offset=self.offset),
            self.build_layers(DeformableEncoderLayer, self.encoder_layers),
            width=self.width,
            levels=self.levels,
        )

    def build_queries(self, classes: int) -> nn.Module:
        """Build the queries."""
        if not self.two_stage:
            return PointQueries(self.queries, self.width)
        return ProposedQueries(self.build_proposals(classes), self.queries, self.width)

    def build_proposals(self, classes: int) -> Proposals:
        """Build the proposals that queries are selected from."""
        return Proposals(self.width, self.class_head_type(self.width, classes), self.build_box_head())

    def build_box_head(self, size: float = 0.0) -> DeltaHead:
        """Build a box head; for `size` see `DeltaHead`."""
        return DeltaHead(self.width, size=size)

    def build_decoder(self, classes: int) -> ReferenceDecoder:
        """Build the decoder; with `refine`, every layer has its own heads."""
        heads = range(self.decoder_layers if self.refine else 1)
        # Reference points have no size; the initial boxes are 12 % of the image.
        sizes = [-2.0 if head == 0 and not self.two_stage else 0.0 for head in heads]
        return ReferenceDecoder(
            self.build_layers(DeformableDecoderLayer, self.decoder_layers),
            [self.class_head_type(self.width, classes) for _ in heads],
            [self.build_box_head(size) for size in sizes],
            refinement=Refine() if self.refine else KeepReference(),
            norm=nn.Identity(),
        )

    def build_layers(self, kind: Callable[..., Layer], count: int) -> list[Layer]:
        """Build the layers of the encoder or the decoder."""
        sizes = (self.width, self.heads, self.points_by_level, self.feedforward, self.dropout)
        return [kind(*sizes) for _ in range(count)]

    @property
    def points_by_level(self) -> tuple[int, ...]:
        """Sampling points of each head in each level."""
        return (self.points,) * self.levels

    def build_denoising(self, classes: int) -> nn.Module | None:  # noqa: ARG002 - used by DINO
        """Build the denoising module; None, because Deformable DETR has no denoising queries."""
        return None

    def criterion(self) -> Criterion:
        """Return the criterion, with focal loss for each class."""
        return Criterion(
            self.build_matcher(2.0, FocalLoss()),
            classification=FocalLoss(),
            class_weight=2.0,
            class_agnostic_proposals=True,
        )

    @property
    def finest_stride(self) -> int:
        """Stride in pixels of the finest feature map."""
        return min(self.strides)

    @property
    def rows_by_class(self) -> tuple[str, ...]:
        """Modules whose tensors have one row per class: the class heads of all layers."""
        return ("decoder.class_heads.*",)

    @property
    def rows_by_number(self) -> tuple[str, ...]:
        """The class head of the proposals, of which only the first row is used, for an object of any class."""
        return ("queries.proposals.class_head",)

    @property
    def rows_by_query(self) -> tuple[str, ...]:
        """Tensors with one row per query; none if queries are made from proposals."""
        return () if self.two_stage else ("queries.embedding",)

    @classmethod
    def infer_specific(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings specific to Deformable DETR; see `Recipe.infer_specific`."""
        shown = cls.infer_levels(state, heads)
        if FULLY_PROPOSED in state:
            return {**shown, "refine": True, "two_stage": True}
        own_heads = "decoder.class_heads.1.bias" in state
        return {**shown, "queries": len(state["queries.embedding"]), "refine": own_heads}

    @classmethod
    def infer_levels(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings of feature levels and deformable attention."""
        levels = max(1, count(state, r"neck\.projections\.(\d+)"))  # none is an error
        names = [f"neck.projections.{level}.{cls.neck_convolution}.weight" for level in range(levels)]
        kernels = [state[name] for name in names]
        # Each map of the backbone has half as many channels as the next deeper one.
        deepest = deepest_channels(state)
        return {
            "width": state["decoder.layers.0.feedforward.0.weight"].shape[1],
            "levels": levels,
            "points": len(state["decoder.layers.0.cross_attention.weight.bias"]) // (heads * levels),
            "strides": tuple(32 * kernel.shape[1] // deepest for kernel in kernels if kernel.shape[-1] == 1),
        }

    def huggingface_config(self) -> dict[str, Any]:
        """Return the Hugging Face ``config.json`` of the model."""
        return {
            **super().huggingface_config(),
            "num_feature_levels": self.levels,
            "encoder_n_points": self.points,
            "decoder_n_points": self.points,
            "with_box_refine": self.refine,
            "two_stage": self.two_stage,
            "two_stage_num_proposals": self.queries,
        }

    def unsupported_settings(self, layout: Layout) -> list[str]:
        """Return the names of settings whose values the layout's system does not support."""
        unsupported = super().unsupported_settings(layout)
        if self.strides not in self.published_strides():
            unsupported.append("strides")
        return unsupported

    def published_strides(self) -> tuple[tuple[int, ...], ...]:
        """Return the strides of published models."""
        return ((8, 16, 32) if self.levels > 1 else (32,),)

    def conversion_notes(self, layout: Layout, state: Mapping[str, Tensor]) -> list[str]:
        """Return what has to be set in the layout's system before it can load `state`, one sentence each."""
        sentences = super().conversion_notes(layout, state)
        biased = "neck.projections.0.0.bias" in layout.conversion.to_theirs(state)
        if biased and layout is self.layouts.get("mmdet3"):
            sentences.append(
                f"its neck has biases, but {layout.name}'s own config has none: set bias=True in neck there"
            )
        return sentences
