"""Choose the settings of a run from the data, the machine and the time limit (`recipe: auto`).

docs/guides/auto.md shows the rules as a table, with the measurements. A setting that the user has
set is never changed, and the other choices take it into account.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from querybox.data import DataSettings, DetectionData
from querybox.data.settings import NO_VALIDATION
from querybox.data.training_images import decoded_bytes
from querybox.duration import format_duration
from querybox.models import (
    FOR_FEW_IMAGES,
    SMALL_RECIPES,
    Recipe,
    data_defaults,
    find,
    is_small,
    training_defaults,
)
from querybox.runfile import RUN_FILE, merge, read_run_file
from querybox.settings import Settings
from querybox.structures import Preprocessing
from querybox.text import counted
from querybox.training.resources import Resources
from querybox.training.settings import RunSettings, TrainSettings
from querybox.training.start import resolve_model, with_sizes

AUTO = "auto"
MANY_IMAGES = 5000
"""With a GPU and at least this many images, a published model is trained as published; see `is_published`."""
IMAGE_SIZES = (256, 320, 384, 448, 512, 640)
"""Short sides to choose from, in pixels."""
OBJECT_PIXELS = 20
"""Side in pixels that nine of ten objects should have at least."""
CPU_IMAGE_SIZE, SHORT_RUN_IMAGE_SIZE = 448, 320
"""Largest short sides on a CPU, in general and in short runs."""
SHORT_RUN = 1200
"""Seconds of a short run."""
USUAL_ASPECT, WIDE = 1333 / 800, 2.5
"""Ratio of the sides that images are resized to at most, and the ratio from which they are wide."""
MIN_SIDE = 32
"""Smallest short side of wide images: one cell of the backbone's last feature map."""
SCALES = (0.8, 0.9, 1.0)
"""Short sides of training images, relative to the chosen one."""
CPU_BATCH_SIZE, BATCH_SIZE = 4, 16
"""Images per update on a CPU, and on other devices, which compute a few images as fast as one."""
IMAGES_SEEN = 24_000
"""Images that a run without a time limit is trained on, counting repetitions, in `MIN_EPOCHS` to `MAX_EPOCHS`."""
MIN_EPOCHS, MAX_EPOCHS = 12, 150
UNLIMITED_EPOCHS = 10_000
"""Epochs of a run that ends by its time limit."""
UPDATES_PER_EVALUATION = 200
PATIENCE = 15
"""Evaluations without an improvement after which a run stops."""
CACHE_SHARE = 0.3
"""Share of the available memory that decoded images may take."""
SIDES = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)
"""Words in the names of classes that are others in a mirrored image."""
Reasons = dict[str, tuple[str, str]]
"""What was chosen and why, by subject."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the choices depend on in a dataset."""

    images: int
    objects: int
    max_objects: int
    """Largest number of objects in an image."""
    classes: tuple[str, ...]
    small_object: float
    """Side (square root of the area) that nine of ten objects have at least, relative to the image's short side."""
    aspect: float
    """Median ratio of the long side to the short side of an image."""

    @property
    def why_not_mirrored(self) -> str | None:
        """Why images must not be mirrored; None if they may be."""
        name = next(filter(SIDES.search, self.classes), None)
        return None if name is None else f"class '{name}' would be wrong in a mirrored image"

    @classmethod
    def of(cls, data: DetectionData) -> Self:
        """Determine the facts about a dataset."""
        counts = [int((~image.crowd).sum()) for image in data.images]
        sizes = [
            math.sqrt((x1 - x0) * (y1 - y0)) / min(image.width, image.height)
            for image in data.images
            for x0, y0, x1, y1 in image.boxes_xyxy[~image.crowd]
        ]
        aspects = [max(each.width / each.height, each.height / each.width) for each in data.images]
        return cls(
            images=len(data.images),
            objects=sum(counts),
            max_objects=max(counts, default=0),
            classes=tuple(category.name for category in data.categories),
            small_object=float(np.quantile(sizes, 0.1)) if sizes else 1.0,
            aspect=float(np.median(aspects)) if aspects else 1.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Settings in which everything that depends on the data is set, and the reasons."""

    settings: RunSettings
    facts: Facts
    resources: Resources
    reasons: Reasons

    def describe(self) -> str:
        """Return the choices in a few lines."""
        facts, resources = self.facts, self.resources
        limit = self.settings.train.max_time
        noun = "training image" if self.settings.data.tile is None else "training tile"
        lines = [
            f"recipe auto: {counted(facts.images, noun)}, {counted(facts.objects, 'object')}, "
            f"{counted(len(facts.classes), 'class', 'classes')}; {resources.device}, {counted(resources.cores, 'core')}"
            + (f"; {format_duration(limit)}" if limit else "")
        ]
        width = max(len(chosen) for chosen, _ in self.reasons.values())
        lines += [f"  {name:12} {chosen:{width}}  {why}" for name, (chosen, why) in self.reasons.items()]
        return "\n".join(lines)


def is_auto(settings: RunSettings) -> bool:
    """Return whether the data decides about settings: by default, and with a recipe for few images."""
    return settings.recipe in (None, AUTO, *SMALL_RECIPES)


def is_measured(settings: RunSettings) -> bool:
    """Return whether the memory of a step decides about the number of micro-batches.

    It does if the user has set this, or neither the number nor the batch: a published batch may be made for eight GPUs.
    """
    is_set = {"accumulate", "batch_size"} & settings.train.model_fields_set
    return settings.train.accumulate == AUTO or not is_set


def with_measured_batches(settings: RunSettings, resources: Resources) -> RunSettings:
    """Return `settings` that let the memory decide about the number of micro-batches, if it can be measured."""
    if not resources.reports_memory:
        return settings
    return settings.replace(train=settings.train.replace(accumulate=AUTO))


def with_values_of_run(settings: RunSettings) -> RunSettings:
    """Return `settings` with what the data decided taken from the run in the folder, if there is one; to resume it.

    That is all that is not set if the recipe is chosen, else `data.depth`, `data.shuffle_shards` and micro-batches.
    """
    path = settings.folder / RUN_FILE
    if not path.is_file():
        return settings
    given = settings.model_dump(exclude_unset=True)
    run = read_run_file(path)
    measured = {}
    if is_measured(settings):
        given.get("train", {}).pop("accumulate", None)
        measured = {"train": {"accumulate": run.get("train", {}).get("accumulate", AUTO)}}
    if not is_auto(settings):
        data = {name: run.get("data", {}).get(name) for name in ("depth", "shuffle_shards")}
        run = {"data": data, **measured}
    elif given.get("recipe") == AUTO:
        del given["recipe"]
    return RunSettings.parse(merge(run, given), where=str(path))


def choose(settings: RunSettings, data: DetectionData, resources: Resources) -> Choice:
    """Choose all settings that depend on the data, the machine and the time limit, and are not set.

    Args:
        settings: The settings that the user has set.
        data: The training images.
        resources: What the machine that trains has to offer.
    """
    facts = Facts.of(data)
    name, recipe, preprocessing, reason = choose_model(settings, facts, resources)
    given = set_values(settings.data)
    if preprocessing is not None:
        given = with_sizes(given, preprocessing)
    complete = choose_for_small if is_small(recipe) else choose_for_published
    chosen, reasons = complete(settings.replace(recipe=name), recipe, given, data, facts, resources)
    return Choice(settings=chosen, facts=facts, resources=resources, reasons={"model": reason, **reasons})


def choose_for_published(
    settings: RunSettings,
    recipe: Recipe,
    given: Mapping[str, Any],
    data: DetectionData,
    facts: Facts,
    resources: Resources,
) -> tuple[RunSettings, Reasons]:
    """Complete the settings for a published model: few of them, unless it is fine-tuned with few images."""
    reasons: Reasons = {}
    train = {"precision": "auto", **set_values(settings.train)}
    if resources.reports_memory:
        train.setdefault("accumulate", AUTO)
    if not is_published(facts, resources):
        train = {**choose_fine_tuning(recipe, facts, resources, settings), **train}
        reasons["training"] = describe_schedule(train, facts)
        loading = choose_loading(data, {**data_defaults(recipe), **given}, resources)
        given = {**loading, **given}
    if facts.why_not_mirrored and "horizontal_flip" not in given:
        given = {**given, "horizontal_flip": 0.0}
        reasons["augmentation"] = "as published, but no flips", facts.why_not_mirrored
    return settings.replace(data=given, train=train), reasons


def choose_for_small(
    settings: RunSettings,
    recipe: Recipe,
    given: Mapping[str, Any],
    data: DetectionData,
    facts: Facts,
    resources: Resources,
) -> tuple[RunSettings, Reasons]:
    """Complete the settings for a model of the size of the recipes for few images."""
    chosen_sizes = {} if "image_size" in given else choose_sizes(facts, resources, settings.train.max_time)
    sizes = {**chosen_sizes, **given}
    if chosen_sizes and given.get("long_side") and not settings.data.stretch:
        sizes["image_size"] = min(sizes["image_size"], given["long_side"])
    size = sizes["image_size"]
    queries = int(settings.model.get("queries", recipe.queries))
    if "queries" not in settings.model and facts.max_objects > queries // 2:
        queries = min(900, 10 * math.ceil(2 * facts.max_objects / 10))
    train = {**choose_schedule(facts, resources, settings), **set_values(settings.train)}
    augmentation = choose_augmentation(facts, size)
    values = {**augmentation, **sizes}
    loading = choose_loading(data, values, resources)
    chosen = settings.replace(
        model={"queries": queries, **settings.model}, data={**loading, **values}, train=train
    )
    return chosen, {
        "queries": (f"{queries}", f"at most {counted(facts.max_objects, 'object')} in an image"),
        "images": (
            f"{size} x {sizes['long_side']} pixels" if sizes.get("long_side") else f"{size} pixels",
            f"short side; nine of ten objects are larger than {facts.small_object * size:.0f} pixels then",
        ),
        "training": describe_schedule(train, facts),
        "augmentation": describe_augmentation({**augmentation, **given}, facts),
    }


def set_values(settings: Settings) -> dict[str, Any]:
    """Return the settings that were set."""
    return settings.model_dump(exclude_unset=True)


def choose_model(
    settings: RunSettings, facts: Facts, resources: Resources
) -> tuple[str | None, Recipe, Preprocessing | None, tuple[str, str]]:
    """Return the model: that of the weights, the recipe that is set, or the one that suits the data and the device.

    Returns:
        Its name, None for that of the weights; its settings; the preprocessing of the weights, if there are any; what
        was chosen and why.
    """
    named = None if settings.recipe == AUTO else settings.recipe
    preprocessing = None
    if settings.weights is not None:
        recipe, preprocessing = resolve_model(settings.replace(recipe=named))
        if named is None:
            return None, recipe, preprocessing, (recipe.title, f"that of {Path(settings.weights).name}")
    if named is not None:
        return named, find(named), preprocessing, (named, "as set")
    if is_published(facts, resources):
        reason = f"a GPU and at least {MANY_IMAGES:,} images: trained as published"
        return "dino_r50", find("dino_r50"), None, ("dino_r50", reason)
    reason = "reaches the highest AP on few images and on CPUs"
    return FOR_FEW_IMAGES, find(FOR_FEW_IMAGES), None, (FOR_FEW_IMAGES, reason)


def is_published(facts: Facts, resources: Resources) -> bool:
    """Return whether a model is trained as published: with a GPU and many images."""
    return resources.device == "cuda" and facts.images >= MANY_IMAGES


def choose_sizes(facts: Facts, resources: Resources, max_time: float | None) -> dict[str, int]:
    """Return the size of the images in pixels: the smallest with `OBJECT_PIXELS`, within what time allows.

    The long side of most images is at most `USUAL_ASPECT` times the short side. Images that are much wider (or higher)
    keep their aspect ratio, with as many pixels; within the usual long side, objects in them would become tiny.
    """
    shrink = math.sqrt(USUAL_ASPECT / facts.aspect) if facts.aspect > WIDE else 1.0
    large_enough = [size for size in IMAGE_SIZES if facts.small_object * size * shrink >= OBJECT_PIXELS]
    largest = IMAGE_SIZES[-1]
    if resources.device == "cpu":
        short = max_time is not None and max_time < SHORT_RUN
        largest = SHORT_RUN_IMAGE_SIZE if short else CPU_IMAGE_SIZE
    size = min(large_enough[0] if large_enough else IMAGE_SIZES[-1], largest)
    if facts.aspect <= WIDE:
        return {"image_size": size}
    short_side = max(MIN_SIDE, round(size * shrink))
    return {"image_size": short_side, "long_side": round(short_side * facts.aspect)}


def choose_schedule(facts: Facts, resources: Resources, settings: RunSettings) -> dict[str, Any]:
    """Return the settings of `train`: what was found to train the small models best, in as many epochs as it takes."""
    if "batch_size" in settings.train.model_fields_set:
        batch_size = settings.train.batch_size
    else:
        accumulate = settings.train.accumulate
        parts = resources.processes * (accumulate if isinstance(accumulate, int) else 1)
        size = CPU_BATCH_SIZE if resources.device == "cpu" else BATCH_SIZE
        batch_size = parts * math.ceil(size / parts)
    evaluation = {
        "evaluate_every": max(1, round(UPDATES_PER_EVALUATION / max(1, facts.images // batch_size))),
        "patience": PATIENCE,
    }
    epochs = min(MAX_EPOCHS, max(MIN_EPOCHS, round(IMAGES_SEEN / max(1, facts.images))))
    return {
        "epochs": epochs if settings.train.max_time is None else UNLIMITED_EPOCHS,
        "batch_size": batch_size,
        "lr": 5e-4,
        "backbone_lr": 2e-4,
        "clip": 1.0,
        "schedule": "cosine",
        "warmup_steps": 50,
        "precision": "auto",
        "ema": 0.998,
        **({} if settings.data.val == NO_VALIDATION else evaluation),
    }


def choose_fine_tuning(
    recipe: Recipe, facts: Facts, resources: Resources, settings: RunSettings
) -> dict[str, Any]:
    """Return the settings of `train` for the weights of a published model and few images.

    Its schedule is made for 118,000 images: with 200 it would end before its warm-up. The published learning rates are
    multiplied by the square root of the ratio of the batch sizes, the rule for Adam (Malladi et al. 2022).
    """
    schedule = choose_schedule(facts, resources, settings)
    published = TrainSettings.parse(training_defaults(recipe), where="train")
    factor = math.sqrt(schedule["batch_size"] / published.batch_size)
    rates = {"lr": published.lr, "backbone_lr": published.backbone_lr, "sampling_lr": published.sampling_lr}
    return {
        **schedule,
        **{name: None if rate is None else float(f"{rate * factor:.2g}") for name, rate in rates.items()},
        "clip": published.clip,
        "milestones": None,
        "ema_warmup": None,
        "ema_restart": None,
    }


def choose_augmentation(facts: Facts, image_size: int) -> dict[str, Any]:
    """Return the settings of `data` for augmentation."""
    return {
        "scales": [round(image_size * factor) for factor in SCALES],
        "crop": 0.25,
        "horizontal_flip": 0.0 if facts.why_not_mirrored else 0.5,
        "color_jitter": 0.2,
    }


def choose_loading(data: DetectionData, settings: Mapping[str, Any], resources: Resources) -> dict[str, Any]:
    """Return the settings of `data` for loading, given the others: decoded images are kept in memory if they fit."""
    decoded = decoded_bytes(data, DataSettings.parse(settings, where="data"))
    cache = decoded <= CACHE_SHARE * resources.memory
    if resources.device != "cpu":
        workers = min(8, resources.cores)
    elif cache:
        workers = 0
    else:
        workers = min(2, resources.cores)
    return {"cache": cache, "workers": workers}


def describe_schedule(train: Mapping[str, Any], facts: Facts) -> tuple[str, str]:
    """Return the training settings and the reason."""
    chosen = f"batches of {train['batch_size']}, learning rate {train['lr']:g}, {train['schedule']}"
    if train.get("max_time"):
        return chosen, f"until {format_duration(train['max_time'])} have passed, or the AP no longer rises"
    updates = train["epochs"] * max(1, facts.images // train["batch_size"])
    length = f"{counted(train['epochs'], 'epoch')}, {counted(updates, 'update')}"
    return chosen, f"{length}, or until the AP no longer rises"


def describe_augmentation(data: Mapping[str, Any], facts: Facts) -> tuple[str, str]:
    """Return the augmentation and the reason."""
    flips = "horizontal flips" if data["horizontal_flip"] else "no flips"
    others = {"crops": data["crop"], "scales": len(data["scales"] or ()) > 1, "colours": data["color_jitter"]}
    chosen = ", ".join([flips, *(name for name, used in others.items() if used)])
    return chosen, facts.why_not_mirrored or "see data.vertical_flip for images without an upright direction"
