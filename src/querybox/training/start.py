"""What a run starts from: its data, and a detector that fits them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from querybox.data import DataSettings, DetectionData, read_train_and_val, require_objects
from querybox.detector import Detector
from querybox.errors import CheckpointError, ConfigError
from querybox.evaluate import labels_by_name
from querybox.recipes import find
from querybox.structures import Category
from querybox.training.settings import RunSettings

logger = logging.getLogger(__name__)


def resolve(settings: RunSettings) -> RunSettings:
    """Return `settings` with all of the recipe's values written out and all paths absolute.

    The backbone starts from ImageNet weights unless the settings say otherwise.

    Raises:
        ConfigError: The recipe or one of its settings is unknown, or no training data is set.
    """
    if settings.data.train is None:
        raise ConfigError("setting 'data.train' is missing; expected the path of a dataset to train on")
    named = find(settings.recipe)
    recipe = named.model_dump()
    if settings.weights is None:
        recipe["backbone_weights"] = "imagenet"  # a random backbone learns nothing from a few hundred images
    model = type(named).parse({**recipe, **settings.model}, where="model").model_dump(mode="json")
    if model["backbone_weights"] not in (None, "imagenet"):
        model["backbone_weights"] = str(Path(model["backbone_weights"]).resolve())
    paths = {"train": str(Path(settings.data.train).resolve())}
    if settings.data.val is not None:
        paths["val"] = str(Path(settings.data.val).resolve())
    return settings.replace(
        model=model,
        data=settings.data.replace(**paths).model_dump(),
        weights=None if settings.weights is None else str(Path(settings.weights).resolve()),
        output=str(Path(settings.output).resolve()),
    )


def build_detector(settings: RunSettings, categories: tuple[Category, ...]) -> Detector:
    """Build the detector of resolved `settings` for these classes, with the weights that it starts from.

    Raises:
        ConfigError: The recipe's settings do not fit together.
        CheckpointError: The weights cannot be read, or are of another model.
    """
    detector = Detector.from_recipe(settings.recipe, categories=categories, **settings.model)
    sizes = settings.data.sizes()
    detector.preprocessing = dataclasses.replace(
        detector.preprocessing, short_side=sizes.short_side, long_side=sizes.long_side
    )
    if settings.weights is not None:
        start_from(detector, settings.weights)
    return detector


@torch.no_grad()
def start_from(detector: Detector, path: str) -> None:
    """Copy the weights in a file to `detector`; those of a class go to the class of the same name.

    Raises:
        CheckpointError: The file cannot be read, or is of another model.
    """
    given = Detector.load(path)
    own, other = detector.state_dict(), given.state_dict()
    places = {category.name: label for label, category in enumerate(given.categories)}
    known = {label: places[c.name] for label, c in enumerate(detector.categories) if c.name in places}
    rows = {**known, len(detector.categories): len(given.categories)}  # "no object" comes last in both
    for name, tensor in own.items():
        source = other.get(name)
        if source is None or source.shape[1:] != tensor.shape[1:]:
            raise misfit(path, detector, given, name)
        if name.startswith("decoder.class_head."):
            tensor[list(rows)] = source[list(rows.values())]
        elif source.shape == tensor.shape:
            tensor.copy_(source)
        else:
            raise misfit(path, detector, given, name)
    new = [category.name for label, category in enumerate(detector.categories) if label not in known]
    if new:
        logger.warning("%s: does not know %s; these classes start from random weights", path, ", ".join(new))


def misfit(path: str, detector: Detector, given: Detector, name: str) -> CheckpointError:
    """Return the error that says which settings of the model are not those of the file."""
    assert detector.recipe is not None
    assert given.recipe is not None
    ours, theirs = detector.recipe.model_dump(), given.recipe.model_dump()
    unlike = [
        f"'model.{key}' is {ours[key]!r} here and {theirs[key]!r} there"
        for key in ours
        if ours[key] != theirs[key]
    ]
    raise CheckpointError(
        f"{path}: its '{name}' does not fit this model; {', '.join(unlike)}; use the file's settings"
    )


def read_data(settings: DataSettings) -> tuple[DetectionData, DetectionData | None]:
    """Read the datasets to train on and to evaluate on; None where there is none to evaluate on.

    Raises:
        DataError: A dataset cannot be read, or there are no objects in it.
        ConfigError: The two have different classes.
    """
    training, validation = read_train_and_val(settings)
    require_objects(training)
    if validation is not None:
        require_objects(validation)
        labels_by_name(training.categories, validation.categories)
    return training, validation


def warn_of_crowded_images(data: DetectionData, queries: int) -> None:
    """Warn about images with more objects than the detector has queries, which cannot all be found."""
    surplus = [int((~image.crowd).sum()) - queries for image in data.images]
    surplus = [count for count in surplus if count > 0]
    if surplus:
        logger.warning(
            "%s: %d images have more objects than the model's %d queries; %d boxes are lost: raise 'model.queries'",
            data.source,
            len(surplus),
            queries,
            sum(surplus),
        )
