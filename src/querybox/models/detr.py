"""DETR (Carion et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict

from torch import Tensor, nn

from querybox.errors import ConfigError
from querybox.losses.classification import CrossEntropyLoss
from querybox.losses.criterion import Criterion
from querybox.models.layouts.facebook import FACEBOOK
from querybox.models.layouts.huggingface import HUGGINGFACE
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.layouts.mmdet2 import MMDET2
from querybox.models.layouts.mmdet3 import MMDET3
from querybox.models.public import PublicWeights, panoptic
from querybox.models.recipe import FOR_FEW_IMAGES
from querybox.models.single_map import SingleMap
from querybox.modules.attention_masks import GROUPS, AttentionMaskHead
from querybox.modules.backbone import Backbone
from querybox.modules.blocks import PreNormResidual, Residual
from querybox.modules.decoder import Decoder, NormBeforeHeads, NormBetweenLayers, init_similarity_attention
from querybox.modules.detector import DetectionTransformer
from querybox.modules.encoder import Encoder
from querybox.modules.heads import BoxHead, ClassHead
from querybox.modules.masks import MaskHead
from querybox.modules.neck import InputProjection
from querybox.modules.position import fine_encoding
from querybox.modules.queries import LearnedQueries, PlacedQueries
from querybox.structures import Category


class Transformer(TypedDict):
    """Arguments shared by encoder and decoder layers."""

    width: int
    heads: int
    feedforward: int
    dropout: float
    residual: type[Residual]


class DETR(SingleMap):
    """The settings of DETR; the defaults are its ResNet-50 model."""

    title: ClassVar[str] = "DETR"
    # The 150-epoch schedule, which is the default of `TrainSettings`.
    training: ClassVar[Mapping[str, Any]] = {}
    layouts: ClassVar[Mapping[PublicSystem, Layout]] = {
        "facebook": FACEBOOK,
        "mmdet2": MMDET2,
        "mmdet3": MMDET3,
        "huggingface": HUGGINGFACE,
    }
    public_weights: ClassVar[Mapping[str, PublicWeights]] = {
        "detr-r50": PublicWeights("hf://facebook/detr-resnet-50", 42.0, 41, 86),
        "detr-r50-dc5": PublicWeights("hf://facebook/detr-resnet-50-dc5", 43.3, 41, 187),
        "detr-r101": PublicWeights("hf://facebook/detr-resnet-101", 43.5, 60, 152),
        "detr-r101-dc5": PublicWeights("hf://facebook/detr-resnet-101-dc5", 44.9, 60, 253),
        "detr-r50-panoptic": panoptic("hf://facebook/detr-resnet-50-panoptic", 38.8, 43, None, 31.1, 43.4),
        "detr-r50-dc5-panoptic": panoptic(
            "hf://facebook/detr-resnet-50-dc5-panoptic", 40.2, 43, None, 31.9, 44.6
        ),
        "detr-r101-panoptic": panoptic("hf://facebook/detr-resnet-101-panoptic", 40.1, 62, None, 33.0, 45.1),
    }
    identifying_tensor: ClassVar[str] = "queries.position"
    class_head: ClassVar[str] = "decoder.class_head"
    class_head_type: ClassVar[type[ClassHead]] = ClassHead
    steps_to_learn: ClassVar[int] = 5000
    huggingface_prefix: ClassVar[str] = "Detr"
    huggingface_type: ClassVar[str] = "detr"
    huggingface_processor: ClassVar[str] = "DetrImageProcessor"
    huggingface_names: ClassVar[Mapping[str, str]] = {
        **SingleMap.huggingface_names,
        "norm_between": "auxiliary_loss",
    }

    kind: Literal["detr"] = "detr"
    norm_first: bool = False
    """Use pre-norm layers, which normalise the input of each block, instead of post-norm layers."""
    norm_between: bool = False
    """Also normalise between decoder layers, as transformers does if ``auxiliary_loss`` is set."""
    local_start: bool = False
    """Initialise queries to attend to different positions, for small datasets; see `PlacedQueries`."""
    masks: bool | Literal["attention"] = False  # type: ignore[assignment]
    """Predict the mask of each object as well; "attention" with the head of DETR's panoptic models."""

    @property
    def constant_predictions_cure(self) -> str:
        """See `Recipe.constant_predictions_cure`."""
        local = "" if self.local_start else ", set model.local_start=true,"
        return (
            f"Plain DETR takes thousands of steps to learn where to attend: train longer{local} or set "
            f"recipe={FOR_FEW_IMAGES}"
        )

    def build(self, categories: Sequence[Category]) -> DetectionTransformer:
        """Build the detector; see `Recipe.build`."""
        if self.local_start and self.position != "sine":
            raise ConfigError(f"setting 'local_start' requires position 'sine', got '{self.position}'")
        backbone = self.build_backbone((self.stride,), dilation=self.dilation)
        transformer = Transformer(
            width=self.width,
            heads=self.heads,
            feedforward=self.feedforward,
            dropout=self.dropout,
            residual=PreNormResidual if self.norm_first else Residual,
        )
        neck = InputProjection(self.neck_channels(backbone), self.width)
        fine = fine_encoding(self.width) if self.local_start else None
        encoder = Encoder(
            fine or self.build_position(),
            layers=self.encoder_layers,
            # The output of pre-norm layers is not normalised.
            norm=nn.LayerNorm(self.width) if self.norm_first else None,
            **transformer,
        )
        queries = PlacedQueries(self.queries, fine) if fine else LearnedQueries(self.queries, self.width)
        decoder = Decoder(
            self.class_head_type(self.width, self.num_rows(categories)),
            BoxHead(self.width),
            layers=self.decoder_layers,
            normalization=NormBetweenLayers() if self.norm_between else NormBeforeHeads(),
            **transformer,
        )
        if self.local_start:
            init_similarity_attention(decoder)
        return self.compose(backbone, neck, encoder, queries, decoder, categories=categories)

    @property
    def mask_strides(self) -> tuple[int, ...]:
        """Strides of the backbone's feature maps that are for the mask head alone, and come first."""
        return AttentionMaskHead.strides if self.masks == "attention" else super().mask_strides

    def build_mask_head(self, backbone: Backbone) -> MaskHead | AttentionMaskHead | None:
        """Build the mask head; None if `masks` is not set.

        Raises:
            ConfigError: The features of tokens or the attention maps cannot be divided into groups.
        """
        if self.masks != "attention":
            return super().build_mask_head(backbone)
        for name, factor in (("width", 16 * GROUPS), ("heads", GROUPS)):
            if getattr(self, name) % factor:
                raise ConfigError(
                    f"setting 'masks' is 'attention', which requires a '{name}' that is a multiple of {factor}, got "
                    f"{getattr(self, name)}"
                )
        return AttentionMaskHead(backbone.channels[: len(self.mask_strides)], self.width, self.heads)

    def criterion(self) -> Criterion:
        """Return the criterion, with cross-entropy over classes and no-object."""
        return Criterion(self.build_matcher(1.0, CrossEntropyLoss()))

    @classmethod
    def infer_specific(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer the settings specific to DETR; see `Recipe.infer_specific`."""
        own: dict[str, Any] = {"norm_first": "encoder.norm.weight" in state}
        if "mask_head.attention_map.query.weight" in state:
            own["masks"] = "attention"
        return {**super().infer_specific(state, heads), **own}

    def huggingface_config(self) -> dict[str, Any]:
        """Return the Hugging Face ``config.json`` of the model."""
        config = {**super().huggingface_config(), "auxiliary_loss": self.norm_between}
        if self.masks:
            config["architectures"] = ["DetrForSegmentation"]
        return config

    def unsupported_settings(self, layout: Layout) -> list[str]:
        """Return the names of settings whose values the layout's system does not support."""
        unsupported = super().unsupported_settings(layout)
        if self.norm_first and "encoder.norm" not in layout.modules:
            unsupported.append("norm_first")
        if self.norm_between and layout is not HUGGINGFACE:
            unsupported.append("norm_between")
        if self.local_start:
            unsupported.append("local_start")
        if self.masks == "attention" and not layout.mask_head:
            unsupported.append("masks")
        return unsupported

    def conversion_notes(self, layout: Layout, state: Mapping[str, Tensor]) -> list[str]:
        """Return what has to be set in the layout's system before it can load `state`, one sentence each."""
        sentences = super().conversion_notes(layout, state)
        if self.masks:
            sentences.append("it has a mask head: pass --masks there")
        return sentences
