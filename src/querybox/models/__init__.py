"""The kinds of detectors, and their named recipes.

A recipe has the values of all settings. Its kind, a subclass of `Recipe`, builds the modules and defines everything
that is specific to it. This is the only list of kinds.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from querybox.errors import ConfigError
from querybox.models.conditional_detr import ConditionalDETR
from querybox.models.deformable_detr import DeformableDETR
from querybox.models.deim import DEIM_RECIPES
from querybox.models.detr import DETR
from querybox.models.dfine import DFINE
from querybox.models.dino import DINO
from querybox.models.public import PublicWeights
from querybox.models.recipe import FOR_FEW_IMAGES, Recipe
from querybox.models.rtdetr import RTDETR
from querybox.models.rtdetrv2 import RTDETRv2

__all__ = [
    "DEIM_RECIPES",
    "DETR",
    "DFINE",
    "DINO",
    "FOR_FEW_IMAGES",
    "KINDS",
    "PUBLIC_WEIGHTS",
    "RECIPES",
    "RTDETR",
    "SMALL_RECIPES",
    "ConditionalDETR",
    "DeformableDETR",
    "PublicWeights",
    "RTDETRv2",
    "Recipe",
    "data_defaults",
    "find",
    "is_small",
    "parse",
    "recipes_by_purpose",
    "training_defaults",
]

KINDS: dict[str, type[Recipe]] = {
    each.model_fields["kind"].default: each
    for each in (DETR, DeformableDETR, DINO, ConditionalDETR, RTDETR, RTDETRv2, DFINE)
}
"""All kinds by name, with each parent before the kinds derived from it."""
PUBLIC_WEIGHTS: dict[str, PublicWeights] = {
    name: weights for kind in KINDS.values() for name, weights in kind.public_weights.items()
}
"""The public weights of all kinds by their short names."""

DETR_R50 = DETR()
CONDITIONAL = ConditionalDETR()
DEFORMABLE = DeformableDETR()
DEFORMABLE_REFINE = DEFORMABLE.replace(refine=True)
R18: dict[str, Any] = {
    "backbone": "resnet18d.ra2_in1k",
    "frozen_stride": 0,
    "frozen_batch_norms": False,
    "expansion": 0.5,
    "decoder_layers": 3,
}
RTDETR_SIZES: dict[str, dict[str, Any]] = {
    "r18": R18,
    "r34": {**R18, "backbone": "resnet34d.ra2_in1k", "decoder_layers": 4},
    "r50_m": {"expansion": 0.5, "inference_layers": 3},
    "r50": {},
    "r101": {"backbone": "resnet101d.ra2_in1k", "encoder_width": 384, "encoder_feedforward": 2048},
}
RTDETRV2_SIZES = {"s": "r18", "ms": "r34", "m": "r50_m", "l": "r50", "x": "r101"}
"""Names of the models of RT-DETRv2 (``ms`` is M*), with those of the models of RT-DETR of the same size."""
B0 = {"backbone": "hgnetv2_b0.ssld_stage1_in22k_in1k", "frozen_stride": 0, "frozen_batch_norms": False}
DFINE_SIZES: dict[str, dict[str, Any]] = {
    "n": {
        **B0,
        "width": 128,
        "feedforward": 512,
        "strides": (16, 32),
        "levels": 2,
        "points": (6, 6),
        "encoder_width": 128,
        "encoder_feedforward": 512,
        "expansion": 0.34,
        "fusion_blocks": 2,
        "decoder_layers": 3,
    },
    "s": {**B0, "expansion": 0.5, "fusion_blocks": 1, "decoder_layers": 3},
    "m": {**B0, "backbone": "hgnetv2_b2.ssld_stage1_in22k_in1k", "fusion_blocks": 2, "decoder_layers": 4},
    "l": {},
    "x": {
        "backbone": "hgnetv2_b5.ssld_stage1_in22k_in1k",
        "encoder_width": 384,
        "encoder_feedforward": 2048,
        "reg_scale": 8.0,
    },
}
SMALL: dict[str, Any] = {
    "backbone": "tf_efficientnet_lite0.in1k",
    "width": 128,
    "feedforward": 512,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "dropout": 0.0,
}
"""Settings shared by the small models, which are for few images and CPUs."""
SMALL_PYRAMID = {**SMALL, "frozen_stride": 8, "heads": 4, "levels": 3, "queries": 100}
SMALL_HYBRID = {
    **SMALL_PYRAMID,
    "encoder_width": 128,
    "encoder_feedforward": 512,
    "expansion": 0.5,
    "fusion_blocks": 1,
    "normalize": True,
    "denoising": 30,
    "distinct": True,
    "class_cost": 6.0,
}

RECIPES: dict[str, Recipe] = {
    "detr_r50": DETR_R50,
    "detr_r50_dc5": DETR_R50.replace(dilation=True, stride=16),
    "detr_r101": DETR_R50.replace(backbone="resnet101.tv_in1k"),
    "detr_r101_dc5": DETR_R50.replace(backbone="resnet101.tv_in1k", dilation=True, stride=16),
    "detr_r18": DETR_R50.replace(backbone="resnet18.tv_in1k"),
    "detr_small": DETR_R50.replace(**SMALL, frozen_stride=16, local_start=True),
    "conditional_detr_r50": CONDITIONAL,
    "conditional_detr_r50_dc5": CONDITIONAL.replace(dilation=True, stride=16),
    "deformable_detr_r50": DEFORMABLE,
    "deformable_detr_r50_refine": DEFORMABLE_REFINE,
    "deformable_detr_r50_two_stage": DEFORMABLE_REFINE.replace(two_stage=True),
    "deformable_detr_small": DEFORMABLE_REFINE.replace(**SMALL_PYRAMID),
    "dino_r50": DINO(),
    **{f"rtdetr_{size}": RTDETR().replace(**settings) for size, settings in RTDETR_SIZES.items()},
    **{f"rtdetrv2_{name}": RTDETRv2().replace(**RTDETR_SIZES[size]) for name, size in RTDETRV2_SIZES.items()},
    **{f"dfine_{size}": DFINE().replace(**settings) for size, settings in DFINE_SIZES.items()},
    "dino_small": DINO().replace(**SMALL_PYRAMID, denoising=30, distinct=True, varifocal=True),
    "rtdetr_small": RTDETR().replace(**SMALL_HYBRID),
    "dfine_small": DFINE().replace(**SMALL_HYBRID),
}
"""All recipes by name: published models, DETR with a ResNet-18, and small models for few images and CPUs."""
RECIPES |= {name: RECIPES[each.parent].replace(**each.model) for name, each in DEIM_RECIPES.items()}
PUBLIC_WEIGHTS |= {name.replace("_", "-"): each.weights for name, each in DEIM_RECIPES.items()}
SMALL_RECIPES = ("detr_small", "deformable_detr_small", "dino_small", "rtdetr_small", "dfine_small")
"""Recipes for few images, which have no published training schedule: it is chosen from the data."""


def recipes_by_purpose() -> dict[str, list[str]]:
    """Return the names of all recipes by what they are for."""
    best = ["dino_r50", "rtdetr_r50", "rtdetr_r101", "rtdetrv2_l", "rtdetrv2_x", "dfine_l", "dfine_x"]
    fast = ["rtdetr_r18", "rtdetr_r34", "rtdetr_r50_m", "rtdetrv2_s", "rtdetrv2_ms", "rtdetrv2_m"]
    fast += ["dfine_n", "dfine_s", "dfine_m"]
    for name in DEIM_RECIPES:
        (best if name.endswith(("_l", "_x")) else fast).append(name)
    return {
        "few images, or a CPU": list(SMALL_RECIPES),
        "real-time detection, trained with a GPU": fast,
        "the highest AP on COCO, with a GPU": best,
        "reproducing papers": [name for name in RECIPES if name not in (*SMALL_RECIPES, *fast, *best)],
    }


def find(name: str) -> Recipe:
    """Return the recipe with this name.

    Raises:
        ConfigError: There is no such recipe; the message suggests the closest name.
    """
    if not isinstance(name, str) or name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known recipes: {', '.join(RECIPES)}."
        raise ConfigError(f"unknown recipe '{name}'. {hint}")
    return RECIPES[name]


def parse(values: Mapping[str, Any], where: str = "") -> Recipe:
    """Return the recipe with these settings, of the kind named by the setting ``kind`` (DETR by default).

    Raises:
        ConfigError: The kind or a setting is unknown, or a value is invalid.
    """
    kind = values.get("kind", "detr")
    if not isinstance(kind, str) or kind not in KINDS:
        prefix = f"{where}: " if where else ""
        raise ConfigError(f"{prefix}unknown kind of recipe {kind!r}; expected one of {', '.join(KINDS)}")
    return KINDS[kind].parse(values, where=where)


def is_small(recipe: Recipe) -> bool:
    """Return whether a model has the size of the recipes for few images."""
    return recipe.backbone == SMALL["backbone"] and recipe.width == SMALL["width"]


def training_defaults(recipe: Recipe, name: str | None = None) -> dict[str, Any]:
    """Return the default training settings of a recipe that differ from those of `TrainSettings`.

    Args:
        recipe: The recipe.
        name: Its name in `RECIPES`; None if it has none.
    """
    if name in DEIM_RECIPES:
        return {**recipe.published_training(), **DEIM_RECIPES[name].training}
    return dict(DETR.training if name in SMALL_RECIPES else recipe.published_training())


def data_defaults(recipe: Recipe, name: str | None = None) -> dict[str, Any]:
    """Return the default data settings of a recipe that differ from those of `DataSettings`.

    Args:
        recipe: The recipe.
        name: Its name in `RECIPES`; None if it has none.
    """
    if name in DEIM_RECIPES:
        return {**recipe.published_data(), **DEIM_RECIPES[name].data}
    return dict(DETR.data if name in SMALL_RECIPES else recipe.published_data())
