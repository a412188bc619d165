"""Public checkpoints: the layout is recognised, the recipe inferred, and a detector built around the tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from querybox.checkpoints import coco, native
from querybox.checkpoints.blueprint import Blueprint, restore
from querybox.checkpoints.files import CheckpointFile, read_checkpoint_file
from querybox.checkpoints.find import find_weights
from querybox.checkpoints.native import is_ours
from querybox.checkpoints.recognise import detection_part, recognise
from querybox.checkpoints.statements import stated_images, stated_names, stated_settings
from querybox.errors import CheckpointError, ConfigError, QueryboxError
from querybox.models import Recipe
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category, Preprocessing

logger = logging.getLogger(__name__)

CARD = "querybox"
"""Under this name in ``meta``, files that querybox wrote for other systems say what these have no place for."""
NO_CLASS = "N/A"
"""What Hugging Face calls a row of the class head that stands for no class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a file holds, under our names, and how the file was understood."""

    blueprint: Blueprint
    state: dict[str, Tensor]
    """Every tensor of the detector, of the type that it has in the file."""
    layout: str
    """Whose names the file has."""
    assumed: tuple[str, ...] = ()
    """What neither the tensors nor the file's own words tell, a sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A detector and how its file was understood, as `Checkpoint` says it."""

    detector: DetectionTransformer
    layout: str
    assumed: tuple[str, ...] = ()


def load_detector(
    path: str | Path, *, dilation: bool | None = None, heads: int | None = None
) -> DetectionTransformer:
    """Read a public checkpoint; see `Detector.load`."""
    loaded = load_checkpoint(path, dilation=dilation, heads=heads)
    for sentence in loaded.assumed:
        logger.info("%s: assumed: %s", path, sentence)
    return loaded.detector


def load_checkpoint(path: str | Path, *, dilation: bool | None = None, heads: int | None = None) -> Loaded:
    """Read a checkpoint of any layout and say how it was understood; see `Detector.load`."""
    checkpoint = read_checkpoint(path, dilation=dilation, heads=heads)
    try:
        detector = restore(checkpoint.blueprint, checkpoint.state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Loaded(detector=detector, layout=checkpoint.layout, assumed=checkpoint.assumed)


def read_checkpoint(
    path: str | Path, *, dilation: bool | None = None, heads: int | None = None
) -> Checkpoint:
    """Read a checkpoint of any layout without building the detector; see `Detector.load`."""
    path = find_weights(path)
    given = {name: value for name, value in (("dilation", dilation), ("heads", heads)) if value is not None}
    try:
        if is_ours(path):
            state, card = native.read(path)
            return Checkpoint(blueprint=described(card, given), state=state, layout="querybox")
        file = read_checkpoint_file(path)
        try:
            return understand(file, path, given)
        except QueryboxError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"what it says beside its tensors, or one of their shapes, makes no sense ({error!r}): corrupt, or "
                "of another model"
            ) from error
    except (CheckpointError, ConfigError) as error:
        raise error if str(path) in str(error) else type(error)(f"{path}: {error}") from error


def described(card: Mapping[str, Any], given: Mapping[str, Any]) -> Blueprint:
    """Return what a file that querybox wrote says of itself.

    Raises:
        CheckpointError: It cannot be read.
        ConfigError: It says otherwise than the arguments that were `given`.
    """
    blueprint = Blueprint.from_card(card)
    for name, value in given.items():
        stated = getattr(blueprint.recipe, name, False)  # relatives are never dilated
        if stated != value:
            raise ConfigError(f"got {name}={value}, but the file says {stated}; leave {name} out")
    return blueprint


def understand(file: CheckpointFile, path: Path, given: Mapping[str, Any]) -> Checkpoint:
    """Bring another system's checkpoint to our names and find out what it is.

    Raises:
        CheckpointError: The tensors are no DETR's, and no relative's.
        ConfigError: A setting that was `given` does not fit them.
    """
    tensors = detection_part(file.tensors)
    kind, layout = recognise(tensors)
    try:
        state = layout.to_ours(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"no checkpoint of {kind.title}: {error}") from error
    card = file.metadata.get("meta", {}).get(CARD)
    if card is not None:
        return Checkpoint(blueprint=described(card, given), state=state, layout=layout.name)
    recipe, assumed = infer_recipe(state, kind, file.metadata, given, path)
    categories, unused_rows, assumed_classes = classes(class_rows(state, kind), file.metadata)
    recipe = recipe.replace(unused_rows=unused_rows)
    preprocessing = Preprocessing(
        resizing=layout.resizing, clip_boxes=layout.clip_boxes, **stated_images(file.metadata)
    )
    return Checkpoint(
        blueprint=Blueprint(recipe=recipe, categories=tuple(categories), preprocessing=preprocessing),
        state=state,
        layout=layout.name,
        assumed=(*assumed_classes, *assumed),
    )


def infer_recipe(
    state: Mapping[str, Tensor],
    kind: type[Recipe],
    metadata: Mapping[str, Any],
    given: Mapping[str, Any],
    path: Path,
) -> tuple[Recipe, list[str]]:
    """Return the recipe that the tensors show, the file states or the arguments say, and what was assumed.

    Raises:
        CheckpointError: There is no such model here.
    """
    stated = {**stated_settings(metadata, kind), **given}
    if "dilation" not in kind.model_fields and stated.pop("dilation", False):
        raise CheckpointError(f"querybox has no {kind.title} with a dilated last stage (DC5)")
    known = kind.infer(state, stated)
    return kind.parse(known), kind.assumptions(known, str(path))


def class_rows(state: Mapping[str, Tensor], kind: type[Recipe]) -> int:
    """Return how many rows the class head has, beside "no object".

    Raises:
        CheckpointError: There is no class head.
    """
    name = f"{kind.class_head}.bias"
    if name not in state:
        raise CheckpointError(f"no whole checkpoint: '{name}' is missing")
    return len(state[name]) - kind.no_object


def classes(rows: int, metadata: Mapping[str, Any]) -> tuple[list[Category], tuple[int, ...], list[str]]:
    """Return the classes of a head with so many `rows` beside "no object", the rows of none, and what was assumed."""
    names = stated_names(metadata)
    assumed = []
    if names is not None and len(names) != rows:
        assumed.append(f"the {len(names)} class names in the file are not those of its {rows} classes")
        names = None
    if rows == 91 and (names is None or all(names[row] == name for row, name in coco.NAMES.items())):
        categories, unused_rows = list(coco.CATEGORIES), coco.UNUSED_ROWS
    elif rows == 80 and (names is None or names == list(coco.NAMES.values())):
        categories, unused_rows = list(coco.CATEGORIES), ()
    else:
        unused_rows = tuple(row for row in range(rows) if names is not None and names[row] == NO_CLASS)
        categories = [
            Category(id=row, name=names[row] if names else str(row))
            for row in range(rows)
            if row not in unused_rows
        ]
    if names is None:
        assumed.append("COCO's classes" if categories[0].name == "person" else "its classes are numbered")
    return categories, unused_rows, assumed
