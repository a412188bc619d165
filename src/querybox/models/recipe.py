"""What all recipes have in common: the backbone's settings, and those that every transformer has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import nn

from querybox.errors import ConfigError
from querybox.losses.criterion import Criterion
from querybox.modules.backbone import Backbone
from querybox.modules.detector import DetectionTransformer
from querybox.settings import Settings
from querybox.structures import Category, Preprocessing

# Bounds that no model comes near: a file that a stranger wrote must not make us build without end.
Positive = Annotated[int, Field(gt=0, le=2**20)]
Depth = Annotated[int, Field(gt=0, le=100)]
"""How many of what is built one by one: layers, maps."""


class Recipe(Settings):
    """The settings that every detector has. A recipe adds its own, and picks the parts."""

    kind: str
    """Which family of detectors it is; each recipe has one."""
    backbone: str = "resnet50.tv_in1k"
    """Any timm model that yields feature maps."""
    backbone_weights: str | None = None
    """"imagenet", or a file with torchvision's or timm's names, or null for random weights."""
    frozen_stride: Annotated[int, Field(ge=0)] = 4
    """The backbone is not trained up to its map of this stride; 0 trains all of it."""
    width: Annotated[int, Field(gt=0, le=2**20, multiple_of=4)] = 256
    heads: Positive = 8
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

    def criterion(self) -> Criterion:
        """Return what the detector has to minimise."""
        return Criterion()

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
            preprocessing=Preprocessing(mean=backbone.mean, std=backbone.std),
            recipe=self,
        )
