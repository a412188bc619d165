"""Complete the settings of a run and build its detector."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Container, Mapping
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from querybox.arguments import require_dataset
from querybox.checkpoints.backbone import build
from querybox.checkpoints.find import LAST, resolve_name
from querybox.checkpoints.hub import fetch, is_hub_name
from querybox.checkpoints.read import WITHOUT_SETTING, load_detector, not_inferable, read_checkpoint
from querybox.data.settings import NO_VALIDATION, DataSettings
from querybox.data.storage import stem
from querybox.errors import ConfigError
from querybox.machine import available_cpus
from querybox.models import Recipe, data_defaults, find, parse, training_defaults
from querybox.modules.detector import DetectionTransformer
from querybox.needs import require_effect, without_effect
from querybox.precision import resolve_precision
from querybox.structures import Category, Preprocessing
from querybox.training.finetune import initialize_from
from querybox.training.processes import training_device
from querybox.training.settings import NEEDS, Given, RunSettings, TrainSettings
from querybox.urls import is_url, public_name

logger = logging.getLogger(__name__)


def locate(settings: RunSettings, *, resume: bool) -> RunSettings:
    """Make the paths in `settings` absolute, pin names on the Hub to a commit, and name the run folder.

    Raises:
        ConfigError: No training data is set.
        CheckpointError: The weights are not on the Hub.
    """
    if settings.data.train is None:
        raise ConfigError("setting 'data.train' is missing; expected the path of a dataset to train on")
    train = absolute_dataset("data.train", settings.data.train)
    paths = {"train": str(train)}
    if settings.data.val not in (None, NO_VALIDATION):
        paths["val"] = str(absolute_dataset("data.val", settings.data.val))
    output = default_folder(train, resume=resume) if settings.output is None else absolute(settings.output)
    return settings.replace(
        data={**settings.data.model_dump(exclude_unset=True), **paths},
        weights=None if settings.weights is None else resolve_weights(settings.weights),
        output=str(output.resolve()),
    )


def absolute(path: str) -> Path:
    """Return an absolute path; ``~`` is the home directory, which shells expand neither in YAML nor after ``=``."""
    return Path(os.path.expanduser(path)).resolve()  # noqa: PTH111 - pathlib raises an error for unknown users


def absolute_dataset(name: str, dataset: str) -> Path | str:
    """Return the absolute path of a dataset, or its URL.

    Args:
        name: Name of the setting, for messages.
        dataset: Its value.

    Raises:
        ConfigError: It is a URL with credentials, which would be stored in the run folder, or that has lost a slash.
    """
    require_dataset(f"setting '{name}'", dataset)
    if not is_url(dataset):
        return absolute(dataset)
    if public_name(dataset) != dataset:
        raise ConfigError(
            f"setting '{name}' got {public_name(dataset)} with credentials, which would be stored in the run folder; "
            "expected a URL without: write it into a YAML file, and set the path of that file (docs/guides/shards.md)"
        )
    return dataset


def default_folder(dataset: Path | str, *, resume: bool) -> Path:
    """Return ``runs/NAME``, ``runs/NAME-2`` etc.: the first that does not exist, or the last that does to resume it."""
    if isinstance(dataset, str):
        name = stem(dataset)
    else:
        name = (dataset.parent if dataset.is_file() else dataset).name or "run"
    numbered = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in count(1))
    existing = list(takewhile(Path.exists, numbered))
    if resume and existing:
        return existing[-1]
    return Path("runs") / (f"{name}-{len(existing) + 1}" if existing else name)


def resolve(settings: RunSettings) -> RunSettings:
    """Fill in all defaults of `settings`, which name a recipe or weights.

    The model is that of the recipe, or of the weights if no recipe is given. Without weights, the backbone is
    initialised from ImageNet weights by default. Training and data settings default to those of the recipe.

    Raises:
        ConfigError: The recipe or one of its settings is unknown, or settings are inconsistent.
        CheckpointError: The weights cannot be read.
    """
    recipe, preprocessing = resolve_model(settings)
    model = recipe.model_dump(mode="json")
    if model["backbone_weights"] not in (None, "imagenet"):
        model["backbone_weights"] = str(Path(model["backbone_weights"]).resolve())
    explicit = settings.train.model_dump(exclude_unset=True)
    train = TrainSettings.parse({**training_defaults(recipe, settings.recipe), **explicit}, where="train")
    train = train.replace(precision=resolve_precision(train.precision, training_device()))
    data = settings.data.model_dump(exclude_unset=True)
    data.setdefault("workers", min(settings.data.workers, available_cpus()))
    if preprocessing is not None:
        data = with_sizes(data, preprocessing)
        if data.get("depth") is None:
            data["depth"] = preprocessing.pixel_range
    data = DataSettings.parse({**data_defaults(recipe, settings.recipe), **data}, where="data").model_dump()
    return settings.replace(model=model, train=train.model_dump(), data=data)


def with_sizes(data: Mapping[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the settings of `data` that were set, and the image size of the weights where they do not set another.

    With another `image_size` the long side keeps its ratio to the short side.
    """
    stretch = preprocessing.resizing == "stretch"
    sizes: dict[str, Any] = {"image_size": preprocessing.short_side, "stretch": stretch, **data}
    if sizes["stretch"] == stretch:
        ratio = preprocessing.long_side / preprocessing.short_side
        sizes.setdefault("long_side", round(sizes["image_size"] * ratio))
    return sizes


def check_effect(given: Given, resolved: RunSettings, *, resume: bool) -> None:
    """Check that the settings that the user has written have an effect, unless null or false switches them off.

    In a run file that a run has written it is a warning, because earlier versions wrote more of those without effect.

    Raises:
        ConfigError: Some have no effect.
    """
    written, values = given.written(resume=resume), resolved.flat()
    on = {name for name, value in values.items() if value is not None and value is not False}
    require_effect("setting", NEEDS, written & on, values)
    if given.settings.is_record and not resume:
        changed = changed_settings(given.settings, resolved) & on
        for problem in without_effect(NEEDS, changed - written, values):
            logger.warning("run file: setting %s; it is ignored", problem)


def changed_settings(given: RunSettings, resolved: RunSettings) -> set[str]:
    """Return the dotted names of the settings that have neither their default nor the value of the recipe.

    These are those that decided something, of a run file that a run has written, which names all.
    """
    recipe = parse(resolved.model, where="model")
    if given.model:  # otherwise weights need not be read again
        recipe, _ = resolve_model(resolved.replace(model=not_inferable(given.model)))
    defaults = RunSettings(
        model=recipe.model_dump(mode="json"),
        train=TrainSettings.parse(training_defaults(recipe, resolved.recipe)),
        data=DataSettings.parse(data_defaults(recipe, resolved.recipe)),
    ).flat()
    values, plain = resolved.flat(), RunSettings(data=DataSettings()).flat()
    return {
        name
        for name in given.flat(set_only=True)
        if values[name] not in (defaults.get(name), plain.get(name))
    }


def resolve_weights(weights: str) -> str:
    """Return the absolute path of a checkpoint, or its name on the Hub with the commit."""
    weights = str(resolve_name(weights))
    return fetch(weights).name if is_hub_name(weights) else str(absolute(weights))


def resolve_model(settings: RunSettings) -> tuple[Recipe, Preprocessing | None]:
    """Return the named recipe, or that of the weights, with the settings of the model applied.

    Returns:
        The recipe, and the preprocessing of the weights if there are any.
    """
    named = None if settings.recipe is None else find(settings.recipe)
    values = {} if named is None else named.model_dump()
    if settings.weights is None:
        # A few hundred images are too few to train a random backbone.
        return parse({**values, "backbone_weights": "imagenet", **settings.model}, where="model"), None
    values |= settings.model
    weights, given = weights_or_last(settings), not_inferable(settings.model)
    source = read_checkpoint(weights, **given, recipe=named).blueprint
    if named is not None:
        require_similar(values, source.recipe, given, f"{weights}: is not of recipe '{settings.recipe}'")
    elif (kind := values.get("kind", source.recipe.kind)) != source.recipe.kind:
        raise ConfigError(
            f"{weights}: 'model.kind' is {kind!r} in this run and {source.recipe.kind!r} in the file; omit 'model': "
            "the model is then that of the file"
        )
    values = {**source.recipe.model_dump(), "unused_rows": (), **values}
    return parse(values, where="model"), source.preprocessing


def require_similar(values: Mapping[str, Any], source: Recipe, given: Container[str], where: str) -> None:
    """Check that a recipe and the model of the weights agree in their kind and in what cannot be inferred from tensors.

    Everything else is compared with the tensors; see `initialize_from`.

    Args:
        values: The settings of the recipe, with those that the user has set.
        source: The model of the weights.
        given: Names of the settings that were compared with the weights before.
        where: Beginning of the message.

    Raises:
        ConfigError: They differ.
    """
    ours, theirs = ({**WITHOUT_SETTING, **each} for each in (values, source.model_dump()))
    names = [name for name in not_inferable(theirs) if name not in given and ours[name] != theirs[name]]
    if names or theirs.keys() - ours.keys():
        names = [*(["kind"] if ours["kind"] != theirs["kind"] else []), *names]
        differences = [
            f"'model.{name}' is {ours[name]!r} in the recipe and {theirs[name]!r} in the file"
            for name in names
        ]
        raise ConfigError(
            f"{where}: {', '.join(differences)}; omit 'recipe': the model is then that of the file"
        )


def weights_or_last(settings: RunSettings) -> str:
    """Return the checkpoint that a run starts from; if it is gone, the last detector in the folder of a resumed run."""
    assert settings.weights is not None
    if settings.output is None or is_hub_name(settings.weights) or Path(settings.weights).exists():
        return settings.weights
    last = settings.folder / LAST
    return str(last) if last.is_file() else settings.weights


def build_detector(settings: RunSettings, categories: tuple[Category, ...]) -> DetectionTransformer:
    """Build the detector of resolved `settings` for these classes, with its initial weights.

    Its preprocessing is that of the weights, except for the image size, stretching and the range of pixel values, which
    are those of the data settings.

    Raises:
        ConfigError: The settings of the recipe are inconsistent.
        CheckpointError: The weights cannot be read, or do not fit the model.
    """
    recipe = parse(settings.model, where="model")
    detector = build(recipe, categories)
    if settings.weights is not None:
        source = load_detector(weights_or_last(settings), recipe=recipe)
        initialize_from(detector, source, settings.weights)
        detector.preprocessing = source.preprocessing
    sizes = settings.data.sizes()
    resizing = detector.preprocessing.resizing
    if settings.data.stretch:
        resizing = "stretch"
    elif resizing == "stretch":
        resizing = "querybox"
    detector.preprocessing = dataclasses.replace(
        detector.preprocessing,
        short_side=sizes.short_side,
        long_side=sizes.long_side,
        resizing=resizing,
        pixel_range=settings.data.pixel_range,
    )
    return detector
