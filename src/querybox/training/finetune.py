"""Fine-tuning: a detector begins with the weights of another one, whose classes and queries may be others."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from querybox.checkpoints.blueprint import misfits
from querybox.errors import CheckpointError
from querybox.models.tensors import tensors_of
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category
from querybox.text import listed

logger = logging.getLogger(__name__)


@torch.no_grad()
def start_from(detector: DetectionTransformer, source: DetectionTransformer, where: str) -> None:
    """Give `detector` the weights of `source`.

    A row of a class head goes to the class of the same name, "no object" keeps its own, and the rows of new classes
    stay as they are: random; so with the labels of denoising. Queries beyond those of `source` stay as they are as
    well, as in a model that nobody trained yet; fewer queries are its first ones. All other tensors have to fit.

    Args:
        detector: Changed in place.
        source: The trained detector.
        where: Its file, for messages.

    Raises:
        CheckpointError: A tensor does not fit; all such are listed.
    """
    recipe = source.recipe
    assert recipe is not None
    own, given = detector.state_dict(), source.state_dict()
    kept = match_classes(detector.categories, source.categories)
    rows = [detector.class_rows[label] for label in kept]
    source_rows = [source.class_rows[label] for label in kept.values()]
    by_class = tensors_of(given, recipe.rows_by_class)
    first_rows = tensors_of(given, (*recipe.rows_by_number, *recipe.rows_by_query))
    for name in own.keys() & given.keys():
        if own[name].shape[1:] != given[name].shape[1:]:
            continue  # named below
        if name in by_class:
            last = [-1] if recipe.no_object else []
            given[name] = replace_rows(own[name], rows + last, given[name][source_rows + last])
        elif name in first_rows:
            both = min(len(own[name]), len(given[name]))
            given[name] = replace_rows(own[name], range(both), given[name][:both])
    if problems := misfits(own, given):
        raise CheckpointError(
            f"{where}: does not fit the model of this run{unlike(detector, source)}: {'; '.join(problems)}"
        )
    detector.load_state_dict(given)
    report(detector, source, kept, where)


def match_classes(ours: Sequence[Category], theirs: Sequence[Category]) -> dict[int, int]:
    """Return our label -> their label of each class whose name both have.

    Equal names come first, then such as differ in capitals, hyphens or spaces alone. No class is used twice.
    """
    matches: dict[int, int] = {}
    for spelling in (str, plainly):
        free = {
            spelling(category.name): label
            for label, category in reversed(list(enumerate(theirs)))
            if label not in matches.values()
        }
        for label, category in enumerate(ours):
            if label not in matches and spelling(category.name) in free:
                matches[label] = free.pop(spelling(category.name))
    return dict(sorted(matches.items()))


def plainly(name: str) -> str:
    """Return how a class is called, however it is written: ``Traffic_Light`` is ``traffic light``."""
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def replace_rows(tensor: Tensor, rows: Sequence[int], values: Tensor) -> Tensor:
    """Return a copy of `tensor` with `values` in some of its rows."""
    copy = tensor.clone()
    copy[list(rows)] = values.to(copy)
    return copy


def unlike(detector: DetectionTransformer, source: DetectionTransformer) -> str:
    """Say which settings of the two models differ, those aside that may."""
    assert detector.recipe is not None
    assert source.recipe is not None
    ours, theirs = detector.recipe.model_dump(), source.recipe.model_dump()
    differences = [
        f"'model.{key}' is {ours[key]!r} here and {theirs.get(key)!r} there"
        for key in ours.keys() - detector.recipe.adaptable
        if ours[key] != theirs.get(key)
    ]
    return f" ({', '.join(sorted(differences))}; leave these settings to the file)" if differences else ""


def report(
    detector: DetectionTransformer, source: DetectionTransformer, kept: dict[int, int], where: str
) -> None:
    """Log what is kept and what starts from random weights."""
    names = [category.name for category in detector.categories]
    new = [name for label, name in enumerate(names) if label not in kept]
    logger.info(
        "%s: %d of %d classes are known: %s",
        where,
        len(kept),
        len(names),
        listed([names[label] for label in kept]) or "none",
    )
    if new:
        logger.warning("%s: does not know %s; these classes start from random weights", where, ", ".join(new))
    assert detector.recipe is not None
    assert source.recipe is not None
    if not detector.recipe.rows_by_query:
        return  # none is learnt: as many as are asked for are made
    surplus = detector.recipe.queries - source.recipe.queries
    if surplus > 0:
        logger.info("%s: has %d queries; %d more start new", where, source.recipe.queries, surplus)
    elif surplus < 0:
        logger.info("%s: has %d queries; the last %d are left out", where, source.recipe.queries, -surplus)
