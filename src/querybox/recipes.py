"""Named models. A recipe holds the values; its `build` picks the parts. Each relative is a diff of its parent."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from querybox.data.records import listed
from querybox.detector import Detector
from querybox.errors import CheckpointError, ConfigError
from querybox.modules.backbone import Backbone
from querybox.modules.decoder import Decoder
from querybox.modules.encoder import Encoder
from querybox.modules.heads import BoxHead, ClassHead
from querybox.modules.local import PlacedQueries, fine_encoding, look_alike
from querybox.modules.neck import InputProjection
from querybox.modules.position import LearnedPositionEncoding, SinePositionEncoding
from querybox.modules.queries import LearnedQueries
from querybox.settings import Settings
from querybox.structures import Category, Preprocessing
from querybox.weights import querybox as querybox_file
from querybox.weights.backbone import load_backbone

Positive = Annotated[int, Field(gt=0)]


class Transformer(TypedDict):
    """What encoder and decoder layers have in common."""

    width: int
    heads: int
    feedforward: int
    dropout: float
    norm_first: bool


class DETR(Settings):
    """The settings of DETR (Carion et al. 2020); the defaults are its ResNet-50 model."""

    backbone: str = "resnet50.tv_in1k"
    """Any timm model that yields feature maps."""
    backbone_weights: str | None = None
    """"imagenet", or a file with torchvision's or timm's names, or null for random weights."""
    stride: Positive = 32
    """Pixels a cell of the feature map that the encoder sees."""
    dilation: bool = False
    """Dilate the backbone's last stage (DC5); its stride is then 16."""
    frozen_stride: Annotated[int, Field(ge=0)] = 4
    """The backbone is not trained up to its map of this stride; 0 trains all of it."""
    position: Literal["sine", "learned"] = "sine"
    width: Annotated[int, Field(gt=0, multiple_of=4)] = 256
    heads: Positive = 8
    feedforward: Positive = 2048
    encoder_layers: Annotated[int, Field(ge=0)] = 6
    decoder_layers: Positive = 6
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    norm_first: bool = False
    """Normalise before each block (pre-norm) instead of after it."""
    queries: Positive = 100
    """Object queries: at most so many objects are found in an image."""
    unused_rows: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Rows of the class head that stand for no class, as a head has that was trained with COCO's category ids for
    rows. Never detected, and of no use to a model that is yet to be trained."""
    local_start: bool = False
    """Begin with queries that each look at a place of their own, as small data needs; see `querybox.modules.local`."""

    def build(self, categories: Sequence[Category]) -> Detector:
        """Compose the detector, with fresh weights but for the backbone's.

        Raises:
            ConfigError: The settings do not fit together.
            CheckpointError: The backbone weights cannot be read.
        """
        if self.local_start and self.position != "sine":
            raise ConfigError(f"setting 'local_start' needs position 'sine', got '{self.position}'")
        if self.width % self.heads:
            raise ConfigError(
                f"setting 'width' is {self.width}, which is no multiple of 'heads', {self.heads}"
            )
        backbone = Backbone(
            self.backbone, strides=(self.stride,), frozen_stride=self.frozen_stride, dilation=self.dilation
        )
        if self.backbone_weights is not None:
            load_backbone(backbone, self.backbone, self.backbone_weights)
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
            **transformer,
        )
        if self.local_start:
            look_alike(decoder)
        return Detector(
            backbone,
            neck,
            encoder,
            queries,
            decoder,
            categories=categories,
            preprocessing=Preprocessing(mean=backbone.mean, std=backbone.std),
            recipe=self,
        )

    def build_position(self) -> nn.Module:
        """Compose the positional encoding."""
        return {"sine": SinePositionEncoding, "learned": LearnedPositionEncoding}[self.position](self.width)


DETR_R50 = DETR()
RECIPES: dict[str, DETR] = {
    "detr_r50": DETR_R50,
    "detr_r50_dc5": DETR_R50.replace(dilation=True, stride=16),
    "detr_r101": DETR_R50.replace(backbone="resnet101.tv_in1k"),
    "detr_r101_dc5": DETR_R50.replace(backbone="resnet101.tv_in1k", dilation=True, stride=16),
    "detr_r18": DETR_R50.replace(backbone="resnet18.tv_in1k"),
    "detr_small": DETR_R50.replace(
        backbone="tf_efficientnet_lite0.in1k",
        frozen_stride=16,
        width=128,
        feedforward=512,
        encoder_layers=1,
        decoder_layers=3,
        dropout=0.0,
        local_start=True,
    ),
}
"""Every recipe by name: the published four, DETR on ResNet-18, and one for few images and CPUs."""


def find(name: str) -> DETR:
    """Return the recipe of this name.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known recipes: {', '.join(RECIPES)}."
        raise ConfigError(f"unknown recipe '{name}'. {hint}")
    return RECIPES[name]


def build(
    name: str,
    *,
    num_classes: int | None = None,
    categories: Sequence[Category] | None = None,
    **settings: Any,
) -> Detector:
    """Build a named model; see `Detector.from_recipe`."""
    if (num_classes is None) == (categories is None):
        raise ConfigError(f"recipe '{name}': give either num_classes or categories")
    recipe = find(name).replace(**settings)
    return recipe.build(
        categories or [Category(id=label, name=str(label)) for label in range(num_classes or 0)]
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """All that a detector is, beside its tensors."""

    recipe: DETR
    categories: tuple[Category, ...]
    preprocessing: Preprocessing

    def card(self) -> dict[str, Any]:
        """Return the same as plain values, for a file's header."""
        return {
            # The backbone's weights are in the file: where they once came from no longer matters.
            "recipe": self.recipe.replace(backbone_weights=None).model_dump(mode="json"),
            "categories": [dataclasses.asdict(category) for category in self.categories],
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Blueprint:
        """Read what `card` returned.

        Raises:
            CheckpointError: It is something else.
        """
        try:
            return cls(
                recipe=DETR.parse(card["recipe"]),
                categories=TypeAdapter(tuple[Category, ...]).validate_python(card["categories"]),
                preprocessing=TypeAdapter(Preprocessing).validate_python(card["preprocessing"]),
            )
        except (KeyError, TypeError, ValidationError, ConfigError) as error:
            raise CheckpointError(f"its description of the detector cannot be read ({error})") from error


def save(detector: Detector, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a detector to one file; see `Detector.save`."""
    if detector.recipe is None:
        raise CheckpointError(f"{path}: a detector that no recipe built has no settings to be rebuilt from")
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in detector.state_dict().items()
    }
    blueprint = Blueprint(
        recipe=detector.recipe, categories=detector.categories, preprocessing=detector.preprocessing
    )
    querybox_file.write(Path(path), tensors, blueprint.card())


def load(path: str | Path) -> Detector:
    """Read a detector that `save` wrote; see `Detector.load`."""
    tensors, card = querybox_file.read(Path(path))
    try:
        return restore(Blueprint.from_card(card), tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: its header and its tensors do not fit together ({error})") from error


def restore(blueprint: Blueprint, state: Mapping[str, Tensor]) -> Detector:
    """Build a detector around tensors, which it then owns: no random weights are made, nothing is copied.

    Args:
        blueprint: What it is.
        state: All of its tensors, by name; floating ones become float32.

    Returns:
        The detector, in evaluation mode.

    Raises:
        CheckpointError: A tensor is missing, has another shape, or belongs nowhere; all of them are listed.
    """
    with torch.device("meta"):
        detector = blueprint.recipe.replace(backbone_weights=None).build(blueprint.categories)
    problems = misfits(detector.state_dict(), state)
    if problems:
        raise CheckpointError(f"tensors do not fit the model: {listed(problems)}")
    detector.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        assign=True,
    )
    detector.preprocessing = blueprint.preprocessing
    return detector.eval()


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Say of every tensor that is missing, surplus or of another shape what was expected and what there is."""

    def shape(state: Mapping[str, Tensor], name: str) -> str:
        return str(list(state[name].shape)) if name in state else "none"

    names = dict.fromkeys([*wanted, *given])
    shapes = {name: (shape(wanted, name), shape(given, name)) for name in names}
    return [
        f"{name}: expected {mine}, got {theirs}" for name, (mine, theirs) in shapes.items() if mine != theirs
    ]
