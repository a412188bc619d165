"""What a run starts from: its data, and a detector that fits them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from querybox.checkpoints.backbone import build
from querybox.checkpoints.hub import fetch, is_hub_name
from querybox.checkpoints.read import load_detector, read_checkpoint
from querybox.errors import ConfigError
from querybox.models import Recipe, find, parse, training_defaults
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category
from querybox.training.finetune import start_from
from querybox.training.settings import RunSettings, TrainSettings


def resolve(settings: RunSettings) -> RunSettings:
    """Return `settings` with all values written out, all paths absolute, a hub's name pinned.

    The model is that of the recipe, or of the weights where no recipe is named. Without weights, the backbone starts
    from ImageNet's unless the settings say otherwise. How it is trained is what its recipe has by default, unless the
    settings say otherwise.

    Raises:
        ConfigError: The recipe or one of its settings is unknown, settings do not fit each other, or no training data
            is set.
        CheckpointError: The weights cannot be read.
    """
    if settings.data.train is None:
        raise ConfigError("setting 'data.train' is missing; expected the path of a dataset to train on")
    paths = {"train": str(Path(settings.data.train).resolve())}
    if settings.data.val is not None:
        paths["val"] = str(Path(settings.data.val).resolve())
    settings = settings.replace(
        recipe=settings.recipe or ("detr_r50" if settings.weights is None else None),
        data=settings.data.replace(**paths).model_dump(),
        weights=None if settings.weights is None else resolve_weights(settings.weights),
        output=str(Path(settings.output).resolve()),
    )
    recipe = resolve_model(settings)
    model = recipe.model_dump(mode="json")
    if model["backbone_weights"] not in (None, "imagenet"):
        model["backbone_weights"] = str(Path(model["backbone_weights"]).resolve())
    chosen = settings.train.model_dump(exclude_unset=True)
    train = TrainSettings.parse({**training_defaults(recipe, settings.recipe), **chosen}, where="train")
    return settings.replace(model=model, train=train.model_dump())


def resolve_weights(weights: str) -> str:
    """Return the absolute path of a checkpoint, or its name on the hub with the commit."""
    return fetch(weights).name if is_hub_name(weights) else str(Path(weights).resolve())


def resolve_model(settings: RunSettings) -> Recipe:
    """Return the recipe that is meant: the named one or that of the weights, with the settings that differ."""
    values = {} if settings.recipe is None else find(settings.recipe).model_dump()
    if settings.weights is None:
        values["backbone_weights"] = "imagenet"  # a random backbone learns nothing from a few hundred images
    values |= settings.model
    if settings.weights is not None:
        stated = read_checkpoint(settings.weights, **hidden(values)).blueprint.recipe
        values = {**stated.model_dump(), "unused_rows": (), **values}
    return parse(values, where="model")


def hidden(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a model that its tensors do not show, as far as there are any."""
    return {name: model[name] for name in ("dilation", "heads") if name in model}


def build_detector(settings: RunSettings, categories: tuple[Category, ...]) -> DetectionTransformer:
    """Build the detector of resolved `settings` for these classes, with the weights that it starts from.

    Its images are prepared as those that the weights were trained on, but for their size, which the data's settings
    say.

    Raises:
        ConfigError: The recipe's settings do not fit together.
        CheckpointError: The weights cannot be read, or are of another model.
    """
    detector = build(parse(settings.model, where="model"), categories)
    if settings.weights is not None:
        source = load_detector(settings.weights, **hidden(settings.model))
        start_from(detector, source, settings.weights)
        detector.preprocessing = source.preprocessing
    sizes = settings.data.sizes()
    detector.preprocessing = dataclasses.replace(
        detector.preprocessing, short_side=sizes.short_side, long_side=sizes.long_side
    )
    return detector
