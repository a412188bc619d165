"""A checkpoint for another system: the same tensors under its names, in its wrapper."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from querybox.checkpoints import coco, native
from querybox.checkpoints.blueprint import Blueprint, restore
from querybox.checkpoints.huggingface_folder import model_config, preprocessor_config, write_folder
from querybox.checkpoints.read import CARD, NO_CLASS, Checkpoint, read_checkpoint
from querybox.checkpoints.rows import drop_rows, insert_rows
from querybox.errors import CheckpointError, ConfigError
from querybox.files import atomic
from querybox.models import Recipe
from querybox.models.layouts.layout import Layout, PublicSystem

logger = logging.getLogger(__name__)

System = Literal[PublicSystem, "querybox"]
Rows = Literal[80, 91]
SUFFIXES: dict[System, tuple[str, ...]] = {
    "facebook": (".pth", ".pt"),
    "mmdet2": (".pth", ".pt"),
    "mmdet3": (".pth", ".pt"),
    "querybox": (".safetensors",),
}
"""Of the file that is written; for Hugging Face it is a folder."""
STOCK_ROWS: dict[System, int] = {"facebook": 91, "mmdet2": 80, "mmdet3": 80}
"""Rows of the class head, without "no object", in the system's own config for COCO."""


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: System,
    rows: Rows | None = None,
    dilation: bool | None = None,
    heads: int | None = None,
) -> None:
    """Write a checkpoint of any layout for another system.

    Tensors get other names, and the projections of attention are split or joined. Their numbers and types stay, so
    the way there and back gives the very same tensors. What a ``.pth`` file has no place for in its own system (image
    size, attention heads, dilation, category ids) is kept in its ``meta``, which that system passes over. The counters
    of batch norms, which frozen ones never read, are left out where a layout has none, and come back as zero; so does
    the label of no class that DINO's original has.

    Args:
        source: What `Detector.load` reads.
        target: A new ``.pth`` file for facebook, mmdet2 and mmdet3, ``.safetensors`` file for querybox, folder for
            huggingface. It appears when it is complete.
        to: Whose names and wrapper: those of the authors' own code ("facebook", also where the authors are others:
            fundamentalvision/Deformable-DETR, IDEA-Research/DINO), of MMDetection 2.x or 3.x, of the Hugging Face
            hub, or querybox's own.
        rows: Bring the class heads of COCO's 80 classes to 80 rows, as MMDetection has it, or 91, as the authors' own
            code and Hugging Face have it. Each class keeps its logit. On the way to 80 the rows of no class are
            dropped: DETR's softmax gives their probability to the others, so all scores grow, usually by very little.
            On the way to 91 new rows get probability zero, so no score changes. None: as they are.
        dilation: Whether the last stage is dilated, as in `Detector.load`.
        heads: Of attention, as in `Detector.load`.

    Raises:
        CheckpointError: `source` cannot be read.
        ConfigError: An argument is unknown; `target` exists or has the wrong suffix; the other system has no such
            model; or `rows` is given for other classes than COCO's.
    """
    target = Path(target)
    check_choice("to", to, get_args(System))
    check_choice("rows", rows, (*get_args(Rows), None))
    check_target(target, to)
    checkpoint = read_checkpoint(source, dilation=dilation, heads=heads)
    for sentence in checkpoint.assumed:
        logger.info("%s: assumed: %s", source, sentence)
    try:
        check_model(checkpoint, to)
        if rows is not None:
            checkpoint = with_rows(checkpoint, rows)
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{source}: {error}") from error
    write(checkpoint, target, to)
    for sentence in to_set_there(checkpoint, to):
        logger.info("%s: %s", target, sentence)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ConfigError unless an argument is one of the choices."""
    if value not in choices:
        raise ConfigError(f"convert got {name}={value!r}; expected one of {', '.join(map(repr, choices))}")


def check_target(target: Path, to: System) -> None:
    """Raise ConfigError unless `target` is a new path of the right kind."""
    if to in SUFFIXES and target.suffix not in SUFFIXES[to]:
        raise ConfigError(f"{target}: expected a {' or '.join(SUFFIXES[to])} file for {to}; rename it")
    if to not in SUFFIXES and any(target.suffix in suffixes for suffixes in SUFFIXES.values()):
        raise ConfigError(f"{target}: expected a folder for {to}; leave '{target.suffix}' out")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target}: exists already; choose another name, or remove it first")


def check_model(checkpoint: Checkpoint, to: System) -> None:
    """See that the tensors are whole, and that the other system has such a model.

    Raises:
        CheckpointError: A tensor is missing or does not fit.
        ConfigError: A setting has no counterpart there.
    """
    restore(checkpoint.blueprint, checkpoint.state)
    if to == "querybox":
        return
    recipe = checkpoint.blueprint.recipe
    layout = layout_of(recipe, to)
    strangers = [f"{name}={getattr(recipe, name)!r}" for name in recipe.unknown_to(layout)]
    if strangers:
        raise ConfigError(
            f"{layout.name} has no {recipe.title} with {', '.join(strangers)}; only querybox's own file holds "
            "this model"
        )


def layout_of(recipe: Recipe, to: PublicSystem) -> Layout:
    """Return what another system calls the tensors of this kind of model.

    Raises:
        ConfigError: It has no such model, or none whose names are known.
    """
    if to not in recipe.layouts:
        known = ", ".join(recipe.layouts)
        raise ConfigError(
            f"{to} has no names for {recipe.title} that are known; expected one of {known}, querybox"
        )
    return recipe.layouts[to]


def with_rows(checkpoint: Checkpoint, rows: Rows) -> Checkpoint:
    """Bring the class head of COCO's classes to 80 or 91 rows; see `convert`.

    Raises:
        ConfigError: The classes are others.
    """
    blueprint = checkpoint.blueprint
    names = [category.name for category in blueprint.categories]
    if names != list(coco.NAMES.values()):
        raise ConfigError(
            f"rows={rows} is for COCO's 80 classes, this model has {len(names)} of its own; leave rows out"
        )
    before, after = blueprint.recipe.unused_rows, coco.UNUSED_ROWS if rows == 91 else ()
    if before == after:
        return checkpoint
    if after:
        logger.info(
            "class head: %d rows of no class are new; their probability is zero, so no score changes",
            len(after),
        )
    else:
        logger.info(
            "class head: %d rows of no class are dropped; each class keeps its logit%s",
            len(before),
            ", and the softmax gives the probability of the dropped rows to the others, so scores grow a little"
            if blueprint.recipe.no_object
            else "",
        )
    recipe = blueprint.recipe.replace(unused_rows=after)
    return dataclasses.replace(
        checkpoint,
        blueprint=dataclasses.replace(blueprint, recipe=recipe),
        state=insert_rows(recipe, drop_rows(recipe, checkpoint.state, before), after),
    )


def write(checkpoint: Checkpoint, target: Path, to: System) -> None:
    """Write the checkpoint as the system itself would."""
    blueprint, state = checkpoint.blueprint, checkpoint.state
    if to == "querybox":
        native.write(target, state, blueprint.card())
        return
    recipe = blueprint.recipe
    tensors, names = layout_of(recipe, to).to_theirs(state), row_names(blueprint)
    if to == "huggingface":
        files = {
            "config.json": model_config(recipe, names),
            "preprocessor_config.json": preprocessor_config(blueprint.preprocessing, type(recipe)),
        }
        write_folder(target, tensors, files)
        return
    meta: dict[str, Any] = {"dataset_meta": {"classes": names}} if to == "mmdet3" else {"CLASSES": names}
    content: dict[str, Tensor | Any] = {
        "model" if to == "facebook" else "state_dict": tensors,
        "meta": {**meta, CARD: blueprint.card()},
    }
    with atomic(target) as temporary:
        torch.save(content, temporary)


def row_names(blueprint: Blueprint) -> tuple[str, ...]:
    """Return what each row of the class head stands for, without "no object"."""
    unused, names = blueprint.recipe.unused_rows, iter(blueprint.categories)
    rows = range(len(blueprint.categories) + len(unused))
    return tuple(NO_CLASS if row in unused else next(names).name for row in rows)


def to_set_there(checkpoint: Checkpoint, to: System) -> list[str]:
    """Say what the other system has to be told before it loads the file, a sentence each."""
    if to not in STOCK_ROWS or to == "querybox":
        return []  # the file says it all
    recipe, rows = checkpoint.blueprint.recipe, len(row_names(checkpoint.blueprint))
    layout = layout_of(recipe, to)
    sentences = []
    if rows != STOCK_ROWS[to]:
        beside = ' beside "no object"' if recipe.no_object else ""
        settings = " and ".join(f"{setting}={rows}" for setting in layout.class_settings)
        sentences.append(
            f"its class head has {rows} rows{beside}, but {layout.name}'s own config has {STOCK_ROWS[to]}: "
            f"set {settings} there"
        )
    return sentences + recipe.to_tell(layout, checkpoint.state)
