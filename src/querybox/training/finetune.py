"""Fine-tuning: initialise a detector with the weights of another one with different classes or queries."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from querybox.checkpoints.blueprint import shape_mismatches
from querybox.errors import CheckpointError
from querybox.models.tensors import tensors_of
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category
from querybox.text import listed

logger = logging.getLogger(__name__)

MASK_HEAD = "mask_head."
"""Prefix of the names of the tensors of a mask head."""


@torch.no_grad()
def initialize_from(detector: DetectionTransformer, source: DetectionTransformer, where: str) -> None:
    """Load the weights of `source` into `detector`.

    Rows of class heads and of denoising labels are matched by class name; no-object keeps its row, and the rows of new
    classes keep their random initial values. Queries in excess of those of `source` keep their initial values; if there
    are fewer, the first ones are used. A mask head that only one of them has keeps its initial values, or is dropped.
    All other tensors must have the same shape.

    Args:
        detector: The detector, which is modified in place.
        source: The trained detector.
        where: Its file, for messages.

    Raises:
        CheckpointError: Tensors have different shapes; the message lists all of them.
    """
    recipe = source.recipe
    assert recipe is not None
    own, loaded = detector.state_dict(), source.state_dict()
    kept = match_classes(detector.categories, source.categories)
    rows = [detector.class_rows[label] for label in kept]
    source_rows = [source.class_rows[label] for label in kept.values()]
    by_class = tensors_of(loaded, recipe.rows_by_class)
    first_rows = tensors_of(loaded, (*recipe.rows_by_number, *recipe.rows_by_query))
    for name in own.keys() & loaded.keys():
        if own[name].shape[1:] != loaded[name].shape[1:]:
            continue  # reported below
        if name in by_class:
            last = [-1] if recipe.class_head_type.no_object else []
            loaded[name] = replace_rows(own[name], rows + last, loaded[name][source_rows + last])
        elif name in first_rows:
            count = min(len(own[name]), len(loaded[name]))
            loaded[name] = replace_rows(own[name], range(count), loaded[name][:count])
    if type(detector.mask_head) is not type(source.mask_head):
        heads = {name: values for name, values in own.items() if name.startswith(MASK_HEAD)}
        loaded = {name: values for name, values in loaded.items() if not name.startswith(MASK_HEAD)} | heads
    if problems := shape_mismatches(own, loaded):
        differences = describe_differences(detector, source)
        raise CheckpointError(
            f"{where}: does not fit the model of this run{differences}: {'; '.join(problems)}"
        )
    detector.load_state_dict(loaded)
    log_summary(detector, source, kept, where)


def match_classes(ours: Sequence[Category], theirs: Sequence[Category]) -> dict[int, int]:
    """Return a mapping of our labels to their labels, for classes with the same name.

    Equal names are matched first, then names that differ only in case, hyphens, underscores or spaces. No class is
    matched twice.
    """
    matches: dict[int, int] = {}
    for spelling in (str, normalize_name):
        free: dict[str, list[int]] = {}
        for label, category in enumerate(theirs):
            if label not in matches.values():
                free.setdefault(spelling(category.name), []).append(label)
        for label, category in enumerate(ours):
            if label not in matches and free.get(spelling(category.name)):
                matches[label] = free[spelling(category.name)].pop(0)
    return dict(sorted(matches.items()))


def normalize_name(name: str) -> str:
    """Return a class name in lower case without what separates words: ``Traffic_Light`` is ``trafficlight``."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFC", name).casefold())


def replace_rows(tensor: Tensor, rows: Sequence[int], values: Tensor) -> Tensor:
    """Return a copy of `tensor` in which some rows are replaced by `values`."""
    copy = tensor.clone()
    copy[list(rows)] = values.to(copy)
    return copy


def describe_differences(detector: DetectionTransformer, source: DetectionTransformer) -> str:
    """Return in words which settings of the models differ, except for those that may."""
    assert detector.recipe is not None
    assert source.recipe is not None
    ours, theirs = detector.recipe.model_dump(), source.recipe.model_dump()
    differences = [
        f"'model.{key}' is {ours[key]!r} in this run and {theirs.get(key)!r} in the file"
        for key in ours.keys() - detector.recipe.adaptable
        if ours[key] != theirs.get(key)
    ]
    return (
        f" ({', '.join(sorted(differences))}; omit these settings, or the recipe with them)"
        if differences
        else ""
    )


def log_summary(
    detector: DetectionTransformer, source: DetectionTransformer, kept: dict[int, int], where: str
) -> None:
    """Log which classes, queries and mask heads are kept, and which start from random weights."""
    names = [category.name for category in detector.categories]
    new = [name for label, name in enumerate(names) if label not in kept]
    logger.info(
        "%s: %d of %d classes are kept: %s",
        where,
        len(kept),
        len(names),
        listed([names[label] for label in kept]) or "none",
    )
    if new:
        logger.warning("%s: lacks %s; these classes start from random weights", where, ", ".join(new))
    if detector.mask_head is not None and source.mask_head is None:
        logger.info("%s: has no mask head; it starts from random weights", where)
    assert detector.recipe is not None
    assert source.recipe is not None
    if source.mask_head is not None and type(detector.mask_head) is not type(source.mask_head):
        setting = str(source.recipe.masks).lower()
        logger.info("%s: has a mask head, which is dropped; model.masks=%s keeps it", where, setting)
    if not detector.recipe.rows_by_query:
        return  # queries are not learned parameters
    surplus = detector.recipe.queries - source.recipe.queries
    if surplus > 0:
        logger.info(
            "%s: has %d queries; %d more start from random weights", where, source.recipe.queries, surplus
        )
    elif surplus < 0:
        logger.info("%s: has %d queries; the last %d are dropped", where, source.recipe.queries, -surplus)
