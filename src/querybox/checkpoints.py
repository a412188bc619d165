"""Public checkpoints: the layout is recognised, the recipe inferred, and a detector built around the tensors."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from querybox.detector import Detector
from querybox.errors import CheckpointError, ConfigError
from querybox.recipes import DETR, load, restore
from querybox.structures import Category
from querybox.weights import coco
from querybox.weights.files import CheckpointFile, find_weights, read_checkpoint_file
from querybox.weights.querybox import is_ours
from querybox.weights.recognise import detection_part, recognise
from querybox.weights.shapes import infer_settings
from querybox.weights.statements import stated_images, stated_names, stated_settings

logger = logging.getLogger(__name__)

HEADS = 8
"""Of every published DETR, whatever its width."""
NO_CLASS = "N/A"
"""What Hugging Face calls a row of the class head that stands for no class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A detector and how its file was understood."""

    detector: Detector
    layout: str
    """Whose names the file has."""
    assumed: tuple[str, ...] = ()
    """What neither the tensors nor the file's own words tell, a sentence each."""


def from_checkpoint(path: str | Path, *, dilation: bool | None = None, heads: int | None = None) -> Detector:
    """Read a public checkpoint; see `Detector.from_checkpoint`."""
    loaded = load_checkpoint(path, dilation=dilation, heads=heads)
    for sentence in loaded.assumed:
        logger.info("%s: assumed: %s", path, sentence)
    return loaded.detector


def load_checkpoint(path: str | Path, *, dilation: bool | None = None, heads: int | None = None) -> Loaded:
    """Read a checkpoint of any layout and say how it was understood; see `Detector.from_checkpoint`."""
    path = find_weights(Path(path))
    given = {name: value for name, value in (("dilation", dilation), ("heads", heads)) if value is not None}
    if is_ours(path):
        return Loaded(detector=load_ours(path, given), layout="querybox")
    file = read_checkpoint_file(path)
    try:
        return rebuild(file, path, given)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_ours(path: Path, given: dict[str, Any]) -> Detector:
    """Read querybox's own file, which knows all about itself.

    Raises:
        CheckpointError: It is corrupt.
        ConfigError: It says otherwise than the arguments that were `given`.
    """
    detector = load(path)
    assert detector.recipe is not None
    for name, value in given.items():
        stated = getattr(detector.recipe, name)
        if stated != value:
            raise ConfigError(f"{path}: got {name}={value}, but the file says {stated}; leave {name} out")
    return detector


def rebuild(file: CheckpointFile, path: Path, given: dict[str, Any]) -> Loaded:
    """Build the detector whose tensors these are.

    Raises:
        CheckpointError: They are no DETR's, or do not fit together.
        ConfigError: A setting that was `given` does not fit them.
    """
    tensors = detection_part(file.tensors)
    layout = recognise(tensors)
    state = layout.to_ours(tensors)
    known = {**infer_settings(state), **stated_settings(file.metadata), **given}
    categories, unused_rows, assumed = classes(len(state["decoder.class_head.bias"]) - 1, file.metadata)
    if "heads" not in known:
        known["heads"] = HEADS
        assumed.append(f"{HEADS} attention heads; pass heads=... if it has others")
    if "dilation" not in known:
        known["dilation"] = False
        doubt = ", although its name says DC5" if "dc5" in str(path).lower() else ""
        assumed.append(f"the last stage is not dilated{doubt}; pass dilation=True if it is (DC5)")
    recipe = DETR.parse(
        {**known, "stride": 16 if known["dilation"] else 32, "unused_rows": unused_rows}, where=str(path)
    )
    detector = restore(recipe, categories, state)
    detector.preprocessing = dataclasses.replace(
        detector.preprocessing,
        resizing=layout.resizing,
        clip_boxes=layout.clip_boxes,
        **stated_images(file.metadata),
    )
    return Loaded(detector=detector, layout=layout.name, assumed=tuple(assumed))


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
