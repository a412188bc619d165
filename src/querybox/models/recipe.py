"""What all kinds of detectors have in common: their settings, and what each kind says of itself.

A kind is a class with a file of its own. It holds the settings, picks the parts in `Recipe.build`, and states every
fact that tells it from the others; the rest of querybox asks it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from querybox.errors import CheckpointError, ConfigError
from querybox.losses.criterion import Criterion
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.models.tensors import RESNETS, count, infer_backbone
from querybox.modules.backbone import Backbone
from querybox.modules.detector import DetectionTransformer
from querybox.settings import Settings
from querybox.structures import Category, Preprocessing

# Bounds that no model comes near: a file that a stranger wrote must not make us build without end.
Positive = Annotated[int, Field(gt=0, le=2**20)]
Depth = Annotated[int, Field(gt=0, le=100)]
"""How many of what is built one by one: layers, maps."""
HEADS = 8
"""Attention heads of every published DETR and relative, whatever its width."""


class Recipe(Settings):
    """The settings that every detector has. A kind adds its own, picks the parts, and states its facts."""

    title: ClassVar[str]
    """What the kind is called."""
    training: ClassVar[Mapping[str, Any]]
    """How it is trained as published: settings of `querybox.training.TrainSettings` that differ from its defaults."""
    layouts: ClassVar[Mapping[PublicSystem, Layout]]
    """The names that other systems have for its tensors."""
    mark: ClassVar[str]
    """A module or tensor that every model of this kind has, and none of the kinds before it in `KINDS`."""
    class_head: ClassVar[str]
    """The module, a linear layer, whose bias has one row a class."""
    no_object: ClassVar[bool]
    """Whether the class head has one more row, its last, for "no object"."""
    steps_to_learn: ClassVar[int]
    """Updates after which few images begin to be learnt; see docs/blood-cells.md."""
    blind_queries_cure: ClassVar[str] = (
        "Train longer with a lower train.lr; look whether model.backbone_weights are set."
    )
    """What helps where every image gets the same boxes."""
    adaptable: ClassVar[frozenset[str]] = frozenset(
        {"backbone_weights", "dropout", "frozen_stride", "queries", "unused_rows"}
    )
    """Settings in which a model may differ from the one whose weights it starts from."""
    huggingface_prefix: ClassVar[str]
    """What the classes of `transformers` for this kind begin with; of kinds that it has."""

    kind: str
    """Which family of detectors it is; each recipe has one."""
    backbone: str = "resnet50.tv_in1k"
    """Any timm model that yields feature maps."""
    backbone_weights: str | None = None
    """"imagenet", or a file with torchvision's or timm's names, or null for random weights."""
    frozen_stride: Annotated[int, Field(ge=0)] = 4
    """The backbone is not trained up to its map of this stride; 0 trains all of it."""
    width: Annotated[int, Field(gt=0, le=2**20, multiple_of=4)] = 256
    heads: Positive = HEADS
    feedforward: Positive = 2048
    encoder_layers: Annotated[int, Field(ge=0, le=100)] = 6
    decoder_layers: Depth = 6
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    queries: Positive = 100
    """Object queries: at most so many objects are found in an image."""
    unused_rows: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Rows of the class head that stand for no class, as a head has that was trained with COCO's category ids for
    rows. Never detected, and of no use to a model that is yet to be trained."""

    @abstractmethod
    def build(self, categories: Sequence[Category]) -> DetectionTransformer:
        """Compose the detector with random weights; `querybox.checkpoints.backbone.build` also loads the backbone's.

        Raises:
            ConfigError: The settings do not fit together.
        """

    @abstractmethod
    def criterion(self) -> Criterion:
        """Return what the detector has to minimise."""

    @property
    @abstractmethod
    def finest_stride(self) -> int:
        """Pixels a cell of the finest feature map that the detector sees."""

    @property
    def rows_by_class(self) -> tuple[str, ...]:
        """Modules whose tensors have a row for each class; ``*`` stands for a number."""
        return (self.class_head,)

    @property
    def rows_by_number(self) -> tuple[str, ...]:
        """Modules whose tensors have as many rows as there are classes, but not for them."""
        return ()

    @property
    @abstractmethod
    def rows_by_query(self) -> tuple[str, ...]:
        """Tensors with a row for each query; none where all of a query is made of the image."""

    @classmethod
    @abstractmethod
    def infer_own(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
        """Return the settings that only this kind has, or shows in a way of its own, as far as `state` shows them."""

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings that are known: those that our `state` shows, and those that were `stated`.

        Dilation and heads leave no trace in it, nor does the number of queries that are all made of proposals.

        Raises:
            CheckpointError: A tensor that would show a setting is missing, or the backbone is no ResNet that is known.
        """
        try:
            return {
                **stated,
                "kind": cls.model_fields["kind"].default,
                "backbone": infer_backbone(state),
                "feedforward": state["decoder.layers.0.feedforward.0.weight"].shape[0],
                "encoder_layers": count(state, r"encoder\.layers\.(\d+)"),
                "decoder_layers": count(state, r"decoder\.layers\.(\d+)"),
                # Deformable attention shows how many points all heads look at together.
                **cls.infer_own(state, stated.get("heads", HEADS)),
            }
        except KeyError as error:
            raise CheckpointError(f"incomplete checkpoint: '{error.args[0]}' is missing") from error

    @classmethod
    def stated_in_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that no shape shows, where a Hugging Face config states them.

        Raises:
            CheckpointError: It states something that querybox has no setting for.
        """
        require(config, "activation_function", "relu")
        heads = config.get("encoder_attention_heads", HEADS)
        require(config, "decoder_attention_heads", heads)
        # transformers 5 states the stride of the backbone's last stage.
        stride = (config.get("backbone_config") or {}).get("output_stride")
        return {
            "heads": heads,
            "dilation": config.get("dilation", False) or stride == 16,
            "dropout": config.get("dropout", 0.1),
        }

    @classmethod
    def assumptions(cls, known: Mapping[str, Any], path: str) -> list[str]:  # noqa: ARG003 - a kind needs it
        """Say what is assumed of a checkpoint that leaves a setting open, a sentence each.

        Args:
            known: The settings that its tensors show or that were stated.
            path: Where it is.
        """
        return [] if "heads" in known else [f"{HEADS} attention heads; pass heads=... if it has others"]

    def huggingface_config(self) -> dict[str, Any]:
        """Return what Hugging Face's ``config.json`` says of the model."""
        return {
            "architectures": [f"{self.huggingface_prefix}ForObjectDetection"],
            "model_type": self.kind,
            "use_timm_backbone": True,
            "backbone": self.backbone.partition(".")[0],  # without the tag of its ImageNet weights
            "use_pretrained_backbone": False,  # its weights are in the folder
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

    def unknown_to(self, layout: Layout) -> list[str]:  # noqa: ARG002 - kinds need it
        """Name the settings whose value does not exist in the layout's system."""
        resnets = {name.partition(".")[0] for name in RESNETS.values()}
        return [] if self.backbone.partition(".")[0] in resnets else ["backbone"]

    def to_tell(self, layout: Layout, state: Mapping[str, Tensor]) -> list[str]:  # noqa: ARG002 - kinds need them
        """Say what the layout's system has to be told before it loads our `state`, a sentence each."""
        if self.heads == HEADS:
            return []
        return [f"it has {self.heads} attention heads, which no tensor shows: set them there"]

    def build_backbone(self, strides: tuple[int, ...], *, dilation: bool = False) -> Backbone:
        """Compose the backbone.

        Raises:
            ConfigError: It has no such maps, or the settings do not fit together.
        """
        if self.width % self.heads:
            raise ConfigError(
                f"setting 'width' is {self.width}, which is no multiple of 'heads', {self.heads}"
            )
        return Backbone(self.backbone, strides=strides, frozen_stride=self.frozen_stride, dilation=dilation)

    def preprocessing(self, backbone: Backbone) -> Preprocessing:
        """Return how an image becomes the input of a new model."""
        return Preprocessing(mean=backbone.mean, std=backbone.std)

    def compose(
        self,
        backbone: Backbone,
        *parts: nn.Module,
        categories: Sequence[Category],
        denoising: nn.Module | None = None,
    ) -> DetectionTransformer:
        """Put the parts together, in the order of the forward pass."""
        return DetectionTransformer(
            backbone,
            *parts,
            denoising=denoising,
            categories=categories,
            preprocessing=self.preprocessing(backbone),
            recipe=self,
        )


def require(config: Mapping[str, Any], key: str, expected: object) -> None:
    """Raise CheckpointError if a Hugging Face config states another value."""
    if config.get(key, expected) != expected:
        raise CheckpointError(f"config.json: '{key}' is {config[key]!r}; querybox reads {expected!r} alone")
