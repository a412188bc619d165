"""Conversion of checkpoints to the layouts of other libraries."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from querybox.arguments import require_path
from querybox.checkpoints import coco, native
from querybox.checkpoints.blueprint import Blueprint, restore
from querybox.checkpoints.hub import CONFIG, PREPROCESSOR
from querybox.checkpoints.huggingface_folder import model_config, preprocessor_config, write_folder
from querybox.checkpoints.read import CARD, NO_CLASS, Checkpoint, log_assumptions, read_checkpoint
from querybox.checkpoints.rows import drop_rows, insert_rows
from querybox.errors import CheckpointError, ConfigError
from querybox.files import atomic
from querybox.models import Recipe
from querybox.models.layouts.layout import Layout, PublicSystem
from querybox.structures import Category

logger = logging.getLogger(__name__)

System = Literal[PublicSystem, "querybox"]
Rows = Literal[80, 91]
SUFFIXES: dict[System, tuple[str, ...]] = {
    "facebook": (".pth", ".pt"),
    "mmdet2": (".pth", ".pt"),
    "mmdet3": (".pth", ".pt"),
    "querybox": (".safetensors",),
}
"""Suffixes of the written file; for Hugging Face it is a folder."""


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: System,
    rows: Rows | None = None,
    dilation: bool | None = None,
    heads: int | None = None,
    activation: str | None = None,
    discrete: bool | None = None,
) -> None:
    """Convert a checkpoint of any layout to that of another library.

    Tensors are renamed, and the projections of attention are split or concatenated. Values and types are kept, so
    converting back gives bit-identical tensors. Metadata that a ``.pth`` file of the library does not support (image
    size, attention heads, dilation, category ids) are saved in its ``meta``, which the library ignores. Counters of
    batch norms, which frozen ones do not use, are dropped if a layout has none, and restored as zero; so is the unused
    label embedding of the original DINO and of RT-DETR.

    Args:
        source: A path as for `querybox.load`.
        target: A new ``.pth`` file for facebook, mmdet2 and mmdet3, a ``.safetensors`` file for querybox, or a folder
            for huggingface. It is written atomically.
        to: The target layout: that of the code of the model's authors ("facebook"), of MMDetection 2.x or 3.x,
            of Hugging Face, or of querybox.
        rows: Convert the class heads of COCO's 80 classes to 80 rows, as in MMDetection, or to 91, as in the authors'
            code and Hugging Face. Each class keeps its logit. 80 drops the unused rows, so DETR's softmax assigns their
            probability to the other classes and scores increase, usually very slightly. 91 adds rows of probability
            zero, which changes no score. None keeps the rows.
        dilation: Whether the last stage is dilated, as in `querybox.load`.
        heads: Number of attention heads, as in `querybox.load`.
        activation: Activation of the decoder, as in `querybox.load`.
        discrete: Whether single cells are sampled, as in `querybox.load`.

    Raises:
        CheckpointError: `source` cannot be read.
        ConfigError: An argument is invalid; `target` exists or has the wrong suffix; the other library has no such
            model; or `rows` is given for other classes than COCO's.
    """
    source = require_path("convert", source, "a model")
    target = require_path("convert", target, "the file or folder to write")
    check_choice("to", to, get_args(System))
    check_choice("rows", rows, (*get_args(Rows), None))
    check_target(target, to)
    checkpoint = read_checkpoint(
        source, dilation=dilation, heads=heads, activation=activation, discrete=discrete
    )
    log_assumptions(source, checkpoint.assumptions)
    try:
        check_model(checkpoint, to)
        if rows is not None:
            checkpoint = with_rows(checkpoint, rows)
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{source}: {error}") from error
    write(checkpoint, target, to)
    for sentence in required_settings(checkpoint, to):
        logger.info("%s: %s", target, sentence)


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ConfigError unless `value` is one of the choices."""
    if value not in choices:
        raise ConfigError(f"convert got {name}={value!r}; expected one of {', '.join(map(repr, choices))}")


def check_target(target: Path, to: System) -> None:
    """Raise ConfigError unless `target` is a new path with a valid suffix."""
    if to in SUFFIXES and target.suffix not in SUFFIXES[to]:
        raise ConfigError(f"{target}: expected a {' or '.join(SUFFIXES[to])} file for {to}; rename it")
    if to not in SUFFIXES and any(target.suffix in suffixes for suffixes in SUFFIXES.values()):
        raise ConfigError(f"{target}: expected a folder for {to}; omit '{target.suffix}'")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target}: exists already; choose another name, or remove it first")


def check_model(checkpoint: Checkpoint, to: System) -> None:
    """Check that the tensors are complete, and that the other library has such a model.

    Raises:
        CheckpointError: A tensor is missing or does not fit.
        ConfigError: A setting has no counterpart in the other library.
    """
    restore(checkpoint.blueprint, checkpoint.state)
    if to == "querybox":
        return
    recipe = checkpoint.blueprint.recipe
    layout = layout_of(recipe, to)
    names = [*recipe.unsupported_settings(layout), *(["masks"] if recipe.masks is True else [])]
    unsupported = [f"{name}={getattr(recipe, name)!r}" for name in names]
    if unsupported:
        raise ConfigError(
            f"{layout.name} has no {recipe.title} with {', '.join(unsupported)}; only the format of querybox "
            "supports this model"
        )


def layout_of(recipe: Recipe, to: PublicSystem) -> Layout:
    """Return the layout of this kind of model in another library.

    Raises:
        ConfigError: The library has no such model, or its layout is not supported.
    """
    if to not in recipe.layouts:
        known = ", ".join(recipe.layouts)
        raise ConfigError(
            f"querybox does not know the names of {recipe.title} in {to}; expected one of {known}, querybox"
        )
    return recipe.layouts[to]


def with_rows(checkpoint: Checkpoint, rows: Rows) -> Checkpoint:
    """Convert the class head of COCO's classes to 80 or 91 rows; see `convert`.

    Raises:
        ConfigError: The classes are not COCO's.
    """
    blueprint = checkpoint.blueprint
    names = [category.name for category in blueprint.categories]
    if names != list(coco.NAMES.values()):
        raise ConfigError(
            f"rows={rows} is for COCO's 80 classes, this model has {len(names)} other ones; omit rows"
        )
    before, after = blueprint.recipe.unused_rows, coco.UNUSED_ROWS if rows == 91 else ()
    if before == after:
        return checkpoint
    if after:
        logger.info(
            "class head: %d unused rows are added; their probability is zero, so no score changes",
            len(after),
        )
    else:
        logger.info(
            "class head: %d unused rows are dropped; each class keeps its logit%s",
            len(before),
            ", and the softmax assigns the probability of the dropped rows to the others, so scores increase slightly"
            if blueprint.recipe.class_head_type.no_object
            else "",
        )
    recipe = blueprint.recipe.replace(unused_rows=after)
    return dataclasses.replace(
        checkpoint,
        blueprint=dataclasses.replace(blueprint, recipe=recipe),
        state=insert_rows(recipe, drop_rows(recipe, checkpoint.state, before), after),
    )


def write(checkpoint: Checkpoint, target: Path, to: System) -> None:
    """Write the checkpoint in the format of the library."""
    blueprint, state = checkpoint.blueprint, checkpoint.state
    if to == "querybox":
        native.write(target, state, blueprint.card())
        return
    recipe = blueprint.recipe
    tensors = layout_of(recipe, to).to_theirs({**state, **recipe.computed_tensors()})
    names = row_names(blueprint)
    if to == "huggingface":
        files = {
            CONFIG: model_config(recipe, names, stuff_rows(blueprint)),
            PREPROCESSOR: preprocessor_config(blueprint.preprocessing, type(recipe)),
        }
        write_folder(target, tensors, files)
        return
    meta: dict[str, Any] = {"dataset_meta": {"classes": names}} if to == "mmdet3" else {"CLASSES": names}
    content = {
        "model" if to == "facebook" else "state_dict": tensors,
        "meta": {**meta, CARD: blueprint.card()},
    }
    with atomic(target) as temporary:
        torch.save(content, temporary)


def row_names(blueprint: Blueprint) -> tuple[str, ...]:
    """Return the name of each row of the class head, without no-object."""
    categories = categories_by_row(blueprint)
    rows = range(len(categories) + len(blueprint.recipe.unused_rows))
    return tuple(categories[row].name if row in categories else NO_CLASS for row in rows)


def stuff_rows(blueprint: Blueprint) -> list[int]:
    """Return the rows of the class head that are stuff."""
    return [row for row, category in categories_by_row(blueprint).items() if category.stuff]


def categories_by_row(blueprint: Blueprint) -> dict[int, Category]:
    """Return the classes by their row of the class head."""
    rows = (row for row in count() if row not in blueprint.recipe.unused_rows)
    return dict(zip(rows, blueprint.categories, strict=False))


def required_settings(checkpoint: Checkpoint, to: System) -> list[str]:
    """Return in words the settings of the other library that must be changed before it loads the file."""
    if to == "querybox":
        return []  # the file includes its settings
    recipe, rows = checkpoint.blueprint.recipe, len(row_names(checkpoint.blueprint))
    layout = layout_of(recipe, to)
    if layout.class_rows is None:
        return []  # so does the folder
    sentences = []
    if rows != layout.class_rows:
        beside = ' beside "no object"' if recipe.class_head_type.no_object else ""
        settings = " and ".join(f"{setting}={rows}" for setting in layout.class_settings)
        sentences.append(
            f"its class head has {rows} rows{beside}, but {layout.name}'s own config has {layout.class_rows}: "
            f"set {settings} there"
        )
    return sentences + recipe.conversion_notes(layout, checkpoint.state)
