"""Recognise the kind of detector and the layout of a checkpoint by its tensor names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from querybox.errors import CheckpointError
from querybox.models import KINDS, Recipe
from querybox.models.layouts.layout import DETECTOR, MASK_HEADS, Layout
from querybox.models.layouts.own import OWN
from querybox.models.tensors import pattern
from querybox.text import listed

logger = logging.getLogger(__name__)

AVERAGE_MODULES = ("ema", "ema_model", "model_ema")
"""Names of modules with averaged weights."""
WRAPPER_MODULES = ("module", "model", "net", "network", "detector", "detr", *AVERAGE_MODULES)
"""Names of the module that a wrapped model is in: DistributedDataParallel and AveragedModel, modules of Lightning,
segmentation models around the detector."""
PREFIX = rf"((?:(?:{'|'.join(WRAPPER_MODULES)})\.)*)"
INSIDE = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Names that torch.compile, FSDP and activation checkpointing insert anywhere."""
CRITERION = "criterion."
"""Prefix of the buffers of a criterion, in modules of Lightning."""


def detection_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the detector, without the prefixes of wrappers, and without what is beside it.

    That may be the buffers of a criterion, a copy of the weights without average, or the mask head of a segmentation
    model, if the layout has no names for it.

    Raises:
        CheckpointError: It is none of the known kinds of detectors.
    """
    bare = {INSIDE.sub("", name): tensor for name, tensor in state.items()}
    prefix = find_prefix(bare)
    around = prefix.removesuffix(DETECTOR)
    names = {name: name.removeprefix(prefix) for name in bare if name.startswith(prefix)}
    names |= {
        name: name.removeprefix(around)
        for name in bare
        if name.startswith(tuple(f"{around}{each}" for each in MASK_HEADS))
    }
    _, layout = recognise(dict.fromkeys(names.values()))
    unknown = set(layout.unknown(name for name in names.values() if name.startswith(MASK_HEADS)))
    names = {
        name: inner for name, inner in names.items() if not (inner.startswith(CRITERION) or inner in unknown)
    }
    beside = [name for name in bare if name not in names]
    masks = [name for name in beside if any(each in name for each in MASK_HEADS)]
    if masks:
        logger.warning("dropped %d tensors of a segmentation head: only boxes are detected", len(masks))
    if others := sorted({name.partition(".")[0] for name in beside if name not in masks}):
        average = any(each in prefix.split(".") for each in AVERAGE_MODULES)
        what = f"the averaged weights '{prefix}'" if average else "the detector"
        logger.info(
            "read %s; dropped %d other tensors, in %s", what, len(beside) - len(masks), listed(others)
        )
    return {inner: bare[name] for name, inner in names.items()}


def find_prefix(state: Mapping[str, Tensor]) -> str:
    """Return the prefix of the names of the detector; averaged weights are preferred to others."""
    marks = [re.compile(PREFIX + pattern(mark).pattern) for _, _, mark in known_layouts()]
    prefixes = {match[1] for mark in marks for name in state if (match := mark.match(name))}
    if len(prefixes) < 2:
        return next(iter(prefixes), "")

    def rank(prefix: str) -> tuple[int, bool, int]:
        names = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
        unknown = recognise(dict.fromkeys(names))[1].unknown(names)
        return len(unknown), not any(each in prefix.split(".") for each in AVERAGE_MODULES), len(prefix)

    return min(sorted(prefixes), key=rank)


def known_layouts() -> Iterator[tuple[type[Recipe], Layout, str]]:
    """Yield each kind with each of its layouts, and a module or tensor that only this kind has.

    Relatives come before their parents, whose marks they have as well.
    """
    for kind in reversed(KINDS.values()):
        for layout in kind.layouts.values():
            yield kind, layout, layout.modules[kind.identifying_tensor]
        yield kind, OWN, kind.identifying_tensor


def recognise(state: Mapping[str, object]) -> tuple[type[Recipe], Layout]:
    """Return the kind and the layout of a checkpoint, by a tensor that only this kind has.

    Raises:
        CheckpointError: It is none of the known ones.
    """
    for kind, layout, mark in known_layouts():
        if any(map(pattern(mark).match, state)):
            return kind, layout
    if prefix := find_unknown_prefix(state):
        raise CheckpointError(
            f"its names have the prefix '{prefix}', which is not that of a known wrapper; save the tensors under their "
            "names after it alone"
        )
    expected = ", ".join(f"'{mark}' ({layout.name})" for _, layout, mark in known_layouts())
    raise CheckpointError(
        f"not a checkpoint of DETR or a relative: expected one of {expected}; got {len(state)} tensors, the first are "
        f"{', '.join(list(state)[:3]) or 'none'}"
    )


def find_unknown_prefix(names: Iterable[str]) -> str | None:
    """Return the shortest prefix before names of a known kind; None if there are none."""
    marks = [re.compile(rf"(.+?\.){pattern(mark).pattern}") for _, _, mark in known_layouts()]
    prefixes = {match[1] for name in names for mark in marks if (match := mark.match(name))}
    return min(prefixes, key=lambda prefix: (len(prefix), prefix), default=None)
