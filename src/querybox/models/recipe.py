"""The base class of all kinds of detectors: common settings, and the interface that each kind implements.

A kind is a subclass in a file of its own. It defines the settings, selects the modules in `Recipe.build`, and defines
everything that is specific to it; the rest of querybox knows no kinds.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from querybox.errors import CheckpointError, ConfigError
from querybox.losses.classification import MAX_WEIGHT, ClassificationLoss
from querybox.losses.criterion import Criterion
from querybox.losses.matcher import HungarianMatcher
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.public import PublicWeights
from querybox.models.tensors import RESNETS, count, infer_backbone
from querybox.models.unseen import Unseen
from querybox.modules.attention_masks import AttentionMaskHead
from querybox.modules.backbone import Backbone
from querybox.modules.detector import DetectionTransformer
from querybox.modules.heads import ClassHead, SigmoidClassHead
from querybox.modules.masks import MaskHead
from querybox.settings import Settings
from querybox.structures import MAX_CLASSES, Category, Preprocessing

# Bounds far beyond any real model, so that neither a typing error nor an untrusted file can request an enormous one.
Width = Annotated[int, Field(gt=0, le=2**12, multiple_of=4)]
Positive = Annotated[int, Field(gt=0, le=2**16)]
Queries = Annotated[int, Field(gt=0, le=2**14)]
Depth = Annotated[int, Field(gt=0, le=100)]
"""Number of layers, feature levels, or sampling points of a head and level."""
HEADS = 8
"""Number of attention heads of all published models, whatever their width."""
FOR_FEW_IMAGES = "dino_small"
"""The recipe that is chosen, and advised, for few images and CPUs: it needs a tenth of DETR's steps, has no no-object
class, refines boxes, and has distinct queries and finer feature maps."""


class Recipe(Settings):
    """Settings common to all kinds of detectors. A kind adds its own settings, and defines its properties."""

    title: ClassVar[str]
    """Display name of the kind."""
    training: ClassVar[Mapping[str, Any]]
    """The published training schedule: settings that differ from the defaults of `querybox.training.TrainSettings`."""
    data: ClassVar[Mapping[str, Any]] = {}
    """Published data settings: those that differ from the defaults of `querybox.data.DataSettings`."""
    layouts: ClassVar[Mapping[PublicSystem, Layout]]
    """Its checkpoint layouts in other systems."""
    public_weights: ClassVar[Mapping[str, PublicWeights]]
    """Its public weights by their short names."""
    identifying_tensor: ClassVar[str]
    """Name of a tensor or module that the files of all models of this kind have in other systems, and none of the kinds
    before it in `KINDS`; ``*`` stands for a number."""
    class_head: ClassVar[str]
    """The linear layer whose bias has one row per class."""
    class_head_type: ClassVar[type[ClassHead | SigmoidClassHead]]
    """Type of all class heads, which also determines whether there is a no-object class."""
    steps_to_learn: ClassVar[int]
    """Approximate number of updates until a model trained on a few hundred images begins to detect objects; see
    docs/blood-cells.md."""
    adaptable: ClassVar[frozenset[str]] = frozenset(
        {
            "backbone_weights",
            "dice_cost",
            "dropout",
            "frozen_stride",
            "mask_cost",
            "masks",
            "queries",
            "unused_rows",
        }
    )
    """Settings in which a fine-tuned model may differ from its checkpoint."""
    huggingface_prefix: ClassVar[str]
    """Prefix of the class names of this kind in transformers, if it has it."""
    huggingface_type: ClassVar[str]
    """Its ``model_type`` in transformers."""
    huggingface_processor: ClassVar[str]
    """The class of transformers that prepares images for it."""
    huggingface_names: ClassVar[Mapping[str, str]] = {
        "heads": "encoder_attention_heads",
        "dropout": "dropout",
    }
    """Settings that cannot be inferred from shapes, with their names in a Hugging Face config; defaults are equal."""
    huggingface_supported: ClassVar[Mapping[str, object]] = {"activation_function": "relu"}
    """Settings of a Hugging Face config of which querybox supports one value, that of all published models."""
    supported_arguments: ClassVar[Mapping[str, object]] = {}
    """Arguments that its authors' code saves with the weights and of which querybox supports one value."""
    unseen: ClassVar[Mapping[str, Unseen]] = {
        "heads": Unseen(
            "{} attention heads",
            cure="pass heads=... if it has others",
            note="it has {} attention heads, which cannot be inferred from the tensors: set them there",
        )
    }
    """Settings that tensors do not show."""
    public_backbones: ClassVar[Collection[str]] = tuple(RESNETS.values())
    """Architectures of the backbones that other systems have."""
    widths: ClassVar[tuple[str, ...]] = ("width",)
    """Settings of widths, which attention heads share."""
    temperature: ClassVar[float] = 10000.0
    offset: ClassVar[float] = 0.0
    """The arguments of `SinePositionEncoding`."""

    kind: str
    """Name of the kind."""
    backbone: str = "resnet50.tv_in1k"
    """Any timm model with feature maps that takes images of any size."""
    backbone_weights: str | None = None
    """"imagenet", or a file with torchvision's or timm's names, or null for random weights."""
    frozen_stride: Annotated[int, Field(ge=0, le=2**16)] = 4
    """Stride up to which the backbone is frozen; 0 trains all of it."""
    width: Width = 256
    heads: Positive = HEADS
    feedforward: Positive = 2048
    encoder_layers: Annotated[int, Field(ge=0, le=100)] = 6
    decoder_layers: Depth = 6
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    queries: Queries = 100
    """Number of object queries, the maximum number of objects detected in an image."""
    unused_rows: tuple[Annotated[int, Field(ge=0, le=MAX_CLASSES)], ...] = ()
    """Rows of the class head that belong to no class, as in models trained with COCO's category ids as rows. They are
    never detected, and are not needed for training a new model."""

    masks: bool = False
    """Predict the mask of each object as well."""
    mask_cost: Annotated[float, Field(ge=0, le=MAX_WEIGHT)] = 0.0
    """Weight of the cross-entropy of masks in matching; 5 in Mask DINO."""
    dice_cost: Annotated[float, Field(ge=0, le=MAX_WEIGHT)] = 0.0
    """Weight of the dice loss of masks in matching; 5 in Mask DINO."""

    @abstractmethod
    def build(self, categories: Sequence[Category]) -> DetectionTransformer:
        """Build the detector with random weights; `querybox.checkpoints.backbone.build` also loads the backbone's.

        Raises:
            ConfigError: The settings are inconsistent.
        """

    @abstractmethod
    def criterion(self) -> Criterion:
        """Return the criterion for training."""

    def build_matcher(self, class_cost: float, classification: ClassificationLoss) -> HungarianMatcher:
        """Build the matcher; the weights of boxes are the same in all kinds."""
        return HungarianMatcher(
            class_cost, mask_cost=self.mask_cost, dice_cost=self.dice_cost, classification=classification
        )

    def published_training(self) -> Mapping[str, Any]:
        """Return the published training schedule of this model, which may depend on its settings; see `training`."""
        return self.training

    def published_data(self) -> Mapping[str, Any]:
        """Return the published data settings of this model, which may depend on its settings; see `data`."""
        return self.data

    @property
    def constant_predictions_cure(self) -> str:
        """Advice if the predicted boxes are the same for every image."""
        return "Train longer with a lower train.lr"

    @property
    def refines_boxes(self) -> bool:
        """Whether each decoder layer refines the boxes of the one before."""
        return False

    @property
    @abstractmethod
    def finest_stride(self) -> int:
        """Stride in pixels of the finest feature map."""

    @property
    def rows_by_class(self) -> tuple[str, ...]:
        """Modules whose tensors have one row per class; ``*`` stands for a number."""
        return (self.class_head,)

    @property
    def rows_by_number(self) -> tuple[str, ...]:
        """Modules whose tensors have as many rows as there are classes, but not one per class."""
        return ()

    @property
    @abstractmethod
    def rows_by_query(self) -> tuple[str, ...]:
        """Tensors with one row per query; none if queries are computed from the image."""

    @classmethod
    @abstractmethod
    def infer_specific(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Infer settings from `state` that are specific to this kind, or are inferred in a way specific to it."""

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Any]:
        """Infer the settings from the tensors of a model, and add those already known (`stated`).

        Dilation and the number of heads cannot be inferred, nor can the number of queries if they are made from
        proposals.

        Raises:
            CheckpointError: A required tensor is missing, or the backbone is not a known ResNet.
        """
        try:
            return {
                **stated,
                "kind": cls.model_fields["kind"].default,
                "backbone": cls.infer_backbone(state),
                "feedforward": state["decoder.layers.0.feedforward.0.weight"].shape[0],
                "encoder_layers": count(state, r"encoder\.layers\.(\d+)"),
                "decoder_layers": count(state, r"decoder\.layers\.(\d+)"),
                "masks": "mask_head.lateral.weight" in state,
                # Tensors of deformable attention only give the number of points of all heads together.
                **cls.infer_specific(state, stated.get("heads", HEADS)),
            }
        except KeyError as error:
            raise CheckpointError(f"incomplete checkpoint: '{error.args[0]}' is missing") from error

    @classmethod
    def infer_backbone(cls, state: Mapping[str, Tensor]) -> str:
        """Return timm's name of the backbone with these tensors.

        Raises:
            CheckpointError: It is not a known one.
        """
        return infer_backbone(state)

    @classmethod
    def settings_from_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that cannot be inferred from shapes but are in a Hugging Face config.

        Raises:
            CheckpointError: The config has a value that querybox does not support.
        """
        heads = config.get("encoder_attention_heads", HEADS)
        require(config, **cls.huggingface_supported, decoder_attention_heads=heads)
        # transformers 5 has the stride of the backbone's last stage.
        stride = (config.get("backbone_config") or {}).get("output_stride")
        defaults = {name: cls.model_fields[name].default for name in cls.huggingface_names}
        return {
            **{name: config.get(theirs, defaults[name]) for name, theirs in cls.huggingface_names.items()},
            "dilation": config.get("dilation", False) or stride == 16,
        }

    @classmethod
    def assumptions(cls, known: Mapping[str, Any], path: str) -> list[str]:
        """Return what is assumed about settings of a checkpoint that cannot be determined, one sentence each.

        Args:
            known: The settings that were inferred or given.
            path: Path of the checkpoint.
        """
        names = [name for name in cls.unseen if name not in known]
        return [cls.unseen[name].assumption(cls.model_fields[name].default, path) for name in names]

    def huggingface_config(self) -> dict[str, Any]:
        """Return the Hugging Face ``config.json`` of the model."""
        return {
            **self.common_config(),
            "use_timm_backbone": True,
            "backbone": self.architecture,
            "use_pretrained_backbone": False,  # the weights are in the folder
        }

    def common_config(self) -> dict[str, Any]:
        """Return the entries that the Hugging Face ``config.json`` of every kind has."""
        return {
            "architectures": [f"{self.huggingface_prefix}ForObjectDetection"],
            "model_type": self.huggingface_type,
            "d_model": self.width,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "encoder_attention_heads": self.heads,
            "decoder_attention_heads": self.heads,
            "encoder_ffn_dim": self.feedforward,
            "decoder_ffn_dim": self.feedforward,
            "dropout": self.dropout,
            "attention_dropout": self.dropout,
            "activation_dropout": self.dropout,
            "num_queries": self.queries,
        }

    def unsupported_settings(self, layout: Layout) -> list[str]:
        """Return the names of settings whose values the layout's system does not support."""
        other = [name for name, value in layout.supported.items() if getattr(self, name) != value]
        return other if self.architecture in self.public_backbones else ["backbone", *other]

    def computed_tensors(self) -> Mapping[str, Tensor]:
        """Return tensors that files of other systems contain although they are computed, by names in the layouts."""
        return {}

    def conversion_notes(self, layout: Layout, state: Mapping[str, Tensor]) -> list[str]:  # noqa: ARG002 - used by kinds
        """Return what has to be set in the layout's system before it can load `state`, one sentence each."""
        values = {name: getattr(self, name) for name, each in self.unseen.items() if each.note}
        unusual = [name for name in values if values[name] != type(self).model_fields[name].default]
        return [self.unseen[name].note.format(values[name]) for name in unusual]

    def num_rows(self, categories: Sequence[Category]) -> int:
        """Return the number of rows of the class head, one per class plus the unused ones.

        Raises:
            ConfigError: `unused_rows` repeats a row, or names one that the head does not have.
        """
        rows = len(categories) + len(self.unused_rows)
        if len(set(self.unused_rows)) < len(self.unused_rows) or max(self.unused_rows, default=-1) >= rows:
            raise ConfigError(
                f"setting 'unused_rows' is {list(self.unused_rows)}; expected different rows of a class head with "
                f"{rows}, for {len(categories)} classes: each from 0 to {rows - 1}"
            )
        return rows

    def check(self) -> None:
        """Raise `ConfigError` if settings are inconsistent."""
        for name in self.widths:
            if (width := getattr(self, name)) % self.heads:
                raise ConfigError(
                    f"setting '{name}' is {width}, expected a multiple of 'heads', {self.heads}"
                )

    def expect(self, name: str, expected: str, *, holds: bool) -> None:
        """Raise `ConfigError`, with what the value of a setting is `expected` to be, unless a condition `holds`."""
        if not holds:
            raise ConfigError(
                f"setting '{name}' is {self.model_dump(mode='json')[name]}; expected {expected}"
            )

    def build_backbone(self, strides: tuple[int, ...], **options: bool) -> Backbone:
        """Build the backbone, with further `options` of `Backbone`.

        Raises:
            ConfigError: It has no feature maps of these strides, or the settings are inconsistent.
        """
        self.check()
        strides = (*self.mask_strides, *strides)
        return Backbone(self.backbone, strides=strides, frozen_stride=self.frozen_stride, **options)

    @property
    def architecture(self) -> str:
        """Name of the backbone in timm, without the tag of its weights, such as ``resnet50``."""
        return self.backbone.partition(".")[0]

    @property
    def mask_strides(self) -> tuple[int, ...]:
        """Strides of the backbone's feature maps that are for the mask head alone, and come first."""
        return MaskHead.strides if self.masks else ()

    def build_mask_head(self, backbone: Backbone) -> MaskHead | AttentionMaskHead | None:
        """Build the mask head; None if `masks` is not set."""
        return MaskHead(backbone.channels[0], self.width, stride=self.finest_stride) if self.masks else None

    def neck_channels(self, backbone: Backbone) -> list[int]:
        """Return the channels of the feature maps that the neck gets: all but those for masks."""
        return backbone.channels[len(self.mask_strides) :]

    def preprocessing(self, backbone: Backbone) -> Preprocessing:
        """Return the image preprocessing of a new model."""
        return Preprocessing(mean=backbone.mean, std=backbone.std)

    def compose(
        self,
        backbone: Backbone,
        *parts: nn.Module,
        categories: Sequence[Category],
        denoising: nn.Module | None = None,
    ) -> DetectionTransformer:
        """Combine the modules, given in the order of the forward pass, with a mask head if `masks` is set."""
        return DetectionTransformer(
            backbone,
            *parts,
            denoising=denoising,
            mask_head=self.build_mask_head(backbone),
            categories=categories,
            preprocessing=self.preprocessing(backbone),
            recipe=self,
        )


def require(config: Mapping[str, Any], file: str = "config.json", /, **supported: object) -> None:
    """Raise `CheckpointError` if a config of Hugging Face has another value of one of these settings."""
    for key, value in supported.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{file}: '{key}' is {config[key]!r}; querybox supports only {value!r}")
