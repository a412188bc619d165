"""Reading of checkpoints: the layout is recognised, the recipe is inferred, and the detector is built."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from torch import Tensor

from querybox.checkpoints import coco, native
from querybox.checkpoints.blueprint import Blueprint, restore
from querybox.checkpoints.files import CheckpointFile, read_checkpoint_file
from querybox.checkpoints.find import find_weights
from querybox.checkpoints.hub import CONFIG
from querybox.checkpoints.native import is_native
from querybox.checkpoints.recognise import detection_part, recognise
from querybox.checkpoints.statements import stated_names, stated_preprocessing, stated_settings, stated_stuff
from querybox.errors import CheckpointError, ConfigError, QueryboxError
from querybox.models import Recipe
from querybox.models.layouts.own import OWN
from querybox.models.unseen import DOUBT
from querybox.modules.detector import DetectionTransformer
from querybox.modules.meta import shapes_only
from querybox.structures import Category

logger = logging.getLogger(__name__)

CARD = "querybox"
"""Key in ``meta`` of files written for other libraries, with metadata that these do not support."""
NO_CLASS = "N/A"
"""Hugging Face's name for unused rows of the class head."""
WITHOUT_SETTING: Mapping[str, object] = {"dilation": False, "activation": "relu", "discrete": False}
"""Values that hold for kinds of detectors without such a setting."""


class Statements(TypedDict, total=False):
    """What the user may state because tensors do not show it, see `querybox.load`; None if they do not."""

    dilation: bool | None
    heads: int | None
    activation: str | None
    discrete: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The content of a file under our names, and how it was interpreted."""

    blueprint: Blueprint
    state: dict[str, Tensor]
    """All tensors of the detector, with their types in the file."""
    layout: str
    """Name of the layout of the file."""
    assumptions: tuple[str, ...] = ()
    """What was assumed because neither the tensors nor the metadata determine it, in words."""


def load_detector(
    path: str | Path, *, recipe: Recipe | None = None, **stated: Unpack[Statements]
) -> DetectionTransformer:
    """Load a detector; see `querybox.load` and, for `recipe`, `read_checkpoint`."""
    checkpoint = read_checkpoint(path, recipe=recipe, **stated)
    detector = build_detector(checkpoint, path)
    log_assumptions(path, checkpoint.assumptions)
    return detector


def build_detector(checkpoint: Checkpoint, path: str | Path) -> DetectionTransformer:
    """Build the detector of a checkpoint, which was read from `path`.

    Raises:
        CheckpointError: A tensor is missing, or does not fit.
        ConfigError: The settings are inconsistent.
    """
    try:
        return restore(checkpoint.blueprint, checkpoint.state)
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{path}: {error}") from error


def log_assumptions(path: str | Path, sentences: Iterable[str]) -> None:
    """Log what was assumed about a checkpoint; it is a warning if its name speaks against it."""
    for sentence in sentences:
        logger.log(logging.WARNING if DOUBT in sentence else logging.INFO, "%s: assumed: %s", path, sentence)


def read_checkpoint(
    path: str | Path, *, recipe: Recipe | None = None, **stated: Unpack[Statements]
) -> Checkpoint:
    """Read a checkpoint of any layout without building the detector; see `querybox.load`.

    Args:
        path: The file or folder, or a name.
        recipe: The model that the checkpoint is for. What neither its tensors nor its metadata say is as in it, if they
            are of its kind; it is not compared with what they say.
        stated: See `querybox.load`.
    """
    path = find_weights(path)
    given = {name: value for name, value in stated.items() if value is not None}
    try:
        if is_native(path):
            state, card = native.read(path)
            return Checkpoint(blueprint=read_card(card, given), state=state, layout="querybox")
        file = read_checkpoint_file(path)
        try:
            return interpret(file, path, given, recipe)
        except QueryboxError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"its metadata or the shape of a tensor is invalid ({error!r}): corrupt, or of another model"
            ) from error
    except (CheckpointError, ConfigError) as error:
        raise error if str(path) in str(error) else type(error)(f"{path}: {error}") from error


def read_card(card: Mapping[str, Any], given: Mapping[str, Any]) -> Blueprint:
    """Return the blueprint in the card of a file written by querybox.

    Raises:
        CheckpointError: The card is invalid.
        ConfigError: It contradicts the arguments in `given`.
    """
    blueprint = Blueprint.from_card(card)
    require_agreement({**WITHOUT_SETTING, **blueprint.recipe.model_dump()}, given)
    return blueprint


def require_agreement(stated: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that arguments do not contradict what a file states.

    Raises:
        ConfigError: One does.
    """
    for name, value in given.items():
        if stated.get(name, value) != value:
            raise ConfigError(f"got {name}={value}, but the file says {stated[name]}; omit {name}")


def interpret(
    file: CheckpointFile, path: Path, given: Mapping[str, Any], like: Recipe | None = None
) -> Checkpoint:
    """Convert a public checkpoint to our names, and infer its recipe, classes and preprocessing.

    Raises:
        CheckpointError: The tensors are not those of a known kind of detector.
        ConfigError: A setting in `given` does not fit them, or contradicts the metadata.
    """
    tensors = detection_part(file.tensors)
    kind, layout = recognise(tensors)
    try:
        state = layout.to_ours(tensors)
    except CheckpointError as error:
        unknown = layout.unknown(tensors)
        other = bool(unknown) and all("backbone." in name for name in unknown)
        fault = f"it has another backbone, with tensors such as {unknown[0]}" if other else error
        raise CheckpointError(
            f"not a checkpoint of {kind.title} as querybox reads it: {fault}; docs/guides/checkpoints.md lists the "
            "models and the backbones that it reads"
        ) from error
    card = file.metadata.get("meta", {}).get(CARD)
    if card is not None:
        return Checkpoint(blueprint=read_card(card, given), state=state, layout=layout.name)
    known = like.model_dump(include=set(kind.model_fields)) if isinstance(like, kind) else {}
    recipe, assumptions = infer_recipe(state, kind, file.metadata, given, path, not_inferable(known))
    num_rows = count_class_rows(state, kind)
    categories, unused_rows, class_assumptions = infer_classes(num_rows, file.metadata)
    recipe = recipe.replace(unused_rows=unused_rows)
    preprocessing = stated_preprocessing(layout.preprocessing, file.metadata)
    if layout is OWN:
        with shapes_only():
            preprocessing = recipe.build(categories).preprocessing
        assumptions.append(
            f"the preprocessing and the settings of a new {kind.title}, which a state_dict() does not have; write "
            "files with Detector.save"
        )
    return Checkpoint(
        blueprint=Blueprint(recipe=recipe, categories=tuple(categories), preprocessing=preprocessing),
        state=state,
        layout=layout.name,
        assumptions=(*class_assumptions, *assumptions),
    )


def not_inferable(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a model that cannot be inferred from its tensors."""
    return {name: model[name] for name in ("dilation", "heads", "activation") if name in model}


def infer_recipe(
    state: Mapping[str, Tensor],
    kind: type[Recipe],
    metadata: Mapping[str, Any],
    given: Mapping[str, Any],
    path: Path,
    assumed: Mapping[str, Any],
) -> tuple[Recipe, list[str]]:
    """Infer the recipe from the tensors, the metadata and the arguments; also return the assumptions made.

    Raises:
        CheckpointError: querybox has no such model.
        ConfigError: An argument contradicts the metadata, or is of a setting that the kind does not have.
    """
    stated = stated_settings(metadata, kind)
    require_agreement(stated, given)
    stated = {**assumed, **stated, **given}
    if "dilation" not in kind.model_fields and stated.pop("dilation", False):
        raise CheckpointError(f"querybox has no {kind.title} with a dilated last stage (DC5)")
    for name in given.keys() & {"activation", "discrete"} - kind.model_fields.keys():
        raise ConfigError(
            f"got {name}={given[name]!r} for {kind.title}, where it is always {WITHOUT_SETTING[name]!r}; omit it"
        )
    kind.parse(stated, CONFIG if metadata.get("config") else "")  # shapes are divided by some of them
    known = kind.infer(state, stated)
    return kind.parse(known), kind.assumptions(known, str(path))


def count_class_rows(state: Mapping[str, Tensor], kind: type[Recipe]) -> int:
    """Return the number of rows of the class head, without no-object.

    Raises:
        CheckpointError: There is no class head.
    """
    name = f"{kind.class_head}.bias"
    if name not in state:
        raise CheckpointError(f"incomplete checkpoint: '{name}' is missing")
    return len(state[name]) - kind.class_head_type.no_object


def infer_classes(
    rows: int, metadata: Mapping[str, Any]
) -> tuple[list[Category], tuple[int, ...], list[str]]:
    """Return the classes of a head with this many `rows` without no-object, the unused rows, and the assumptions."""
    names = stated_names(metadata)
    by_row = coco.NAMES_BY_ROW.get(rows, {})
    stuff = stated_stuff(metadata)
    assumptions = []
    if names is not None and len(names) != rows:
        assumptions.append(f"the {len(names)} class names in the file are not those of its {rows} classes")
        names = None
    known = None if names is None else [coco.OTHER_NAMES.get(name, name) for name in names]
    if by_row and (known is None or all(known[row] == name for row, name in by_row.items())):
        categories = [Category(id=row, name=name, stuff=row in coco.STUFF) for row, name in by_row.items()]
        unused_rows = tuple(row for row in range(rows) if row not in by_row)
    elif rows == 80 and known in (None, list(coco.NAMES.values())):
        categories, unused_rows = list(coco.CATEGORIES), ()
    else:
        unused_rows = tuple(row for row in range(rows) if names is not None and names[row] == NO_CLASS)
        categories = [
            Category(id=row, name=names[row] if names else str(row), stuff=row in stuff)
            for row in range(rows)
            if row not in unused_rows
        ]
    if names is None:
        assumptions.append("COCO's classes" if categories[0].name == "person" else "its classes are numbered")
    return categories, unused_rows, assumptions
