"""The description of a detector without its tensors, and how a detector is rebuilt from both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from querybox.checkpoints import native
from querybox.errors import CheckpointError, ConfigError
from querybox.models import parse
from querybox.models.recipe import Recipe
from querybox.modules.detector import DetectionTransformer
from querybox.modules.meta import shapes_only
from querybox.settings import type_adapter
from querybox.structures import Category, Preprocessing
from querybox.text import listed

STORABLE = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
)
"""Floating-point types in which weights can be stored: all signed ones of safetensors."""
TRAINING_ONLY = frozenset(
    {"training", "dropout", "p", "drop_prob", "drop_rate", "inplace", "momentum", "grad_checkpointing"}
)
"""Attributes of modules that do not affect predictions."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Everything that defines a detector except its tensors."""

    recipe: Recipe
    categories: tuple[Category, ...]
    preprocessing: Preprocessing

    def card(self) -> dict[str, Any]:
        """Return the blueprint as JSON-serialisable values, for the header of a file."""
        return {
            # The file contains the backbone's weights; their original source does not matter.
            "recipe": self.recipe.replace(backbone_weights=None).model_dump(mode="json"),
            "categories": [dataclasses.asdict(category) for category in self.categories],
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Blueprint:
        """Create a blueprint from the result of `card`.

        Raises:
            CheckpointError: The card is invalid.
        """
        try:
            return cls(
                recipe=parse(type_adapter(dict[str, Any]).validate_python(card["recipe"])),
                categories=type_adapter(tuple[Category, ...]).validate_python(card["categories"]),
                preprocessing=type_adapter(Preprocessing).validate_python(card["preprocessing"]),
            )
        except (KeyError, TypeError, ValidationError, ConfigError) as error:
            raise CheckpointError(f"its description of the detector cannot be read ({error})") from error


def save(detector: DetectionTransformer, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a detector to a file; see `Detector.save`."""
    native.write(Path(path), *contents(detector, path, dtype=dtype))


def contents(
    detector: DetectionTransformer, path: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the card of the file of a detector, without writing it.

    Raises:
        CheckpointError: The file could not be loaded again, or not as this detector; see `Detector.save`.
    """
    if detector.recipe is None:
        raise CheckpointError(
            f"{path}: the detector was not built by a recipe, so there are no settings to rebuild it from; build it "
            "with Detector.from_recipe, or save its state_dict() with torch.save"
        )
    state: dict[str, Any] = detector.state_dict()
    if odd := [name for name, value in state.items() if not isinstance(value, Tensor) or value.is_quantized]:
        raise CheckpointError(
            f"{path}: not written, because {len(odd)} of its values are not plain tensors, as after quantisation "
            f"({listed(odd)}); save the detector before it is quantised, or export it with precision='int8'"
        )
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    blueprint = Blueprint(
        recipe=detector.recipe, categories=detector.categories, preprocessing=detector.preprocessing
    )
    card = blueprint.card()
    try:
        read = Blueprint.from_card(card)
        expected = expected_modules(read.recipe, read.categories)
        require_tensors(expected, tensors)
        require_same_modules(expected, detector)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: not written, because it could not be loaded again: {error}; undo the change to the detector, or "
            "set detector.categories to the classes of its head"
        ) from error
    return tensors, card


def restore(blueprint: Blueprint, state: Mapping[str, Tensor]) -> DetectionTransformer:
    """Build a detector from its tensors, without initialising random weights or copying the tensors.

    Args:
        blueprint: The description of the detector.
        state: All of its tensors by name; floating-point ones are converted to float32.

    Returns:
        The detector in evaluation mode.

    Raises:
        CheckpointError: Tensors are missing, unexpected, of another shape or type, NaN or infinite; the message lists
            them.
    """
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    detector = without_tensors(blueprint.recipe, blueprint.categories)
    require_tensors(detector, state)
    if any(buffer.is_meta for name, buffer in detector.named_buffers() if name not in state):
        # The backbone computes them, and has no place for them in files.
        with torch.random.fork_rng(devices=[]):
            detector = blueprint.recipe.build(blueprint.categories)
    detector.load_state_dict(state, assign=True)
    detector.preprocessing = blueprint.preprocessing
    return detector.eval()


def without_tensors(recipe: Recipe, categories: tuple[Category, ...]) -> DetectionTransformer:
    """Build a detector on the meta device."""
    with shapes_only():
        return recipe.build(categories)


@lru_cache(maxsize=1)
def expected_modules(recipe: Recipe, categories: tuple[Category, ...]) -> nn.Module:
    """Return `without_tensors`, cached because a run saves its detector many times; it must not be changed."""
    return without_tensors(recipe, categories)


def require_tensors(detector: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Check that `state` can be the tensors of a detector.

    Raises:
        CheckpointError: Tensors are missing, unexpected, of another shape or type, NaN or infinite.
    """
    problems = shape_mismatches(detector.state_dict(), state)
    if problems:
        raise CheckpointError(f"tensors do not fit the model: {listed(problems)}")
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError("its tensors are on the meta device, which stores no values")
    if unusable := [name for name, tensor in state.items() if not is_finite(tensor)]:
        raise CheckpointError(f"{len(unusable)} tensors have NaN or infinite values: {listed(unusable)}")


def require_same_modules(expected: nn.Module, actual: nn.Module) -> None:
    """Compare the types and constants of modules, such as the number of attention heads, which no tensor shows.

    Raises:
        CheckpointError: A module differs from the one of the same name, or has a forward method of its own.
    """
    ours, theirs = dict(expected.named_modules()), dict(actual.named_modules())
    differences = (
        [
            f"{name} is {kind(theirs.get(name))}, expected {kind(ours.get(name))}"
            for name in {**ours, **theirs}
            if name and type(ours.get(name)) is not type(theirs.get(name))
        ]
        or [
            f"{f'{name}.' if name else ''}forward was replaced"
            for name, module in theirs.items()
            if "forward" in vars(module)
        ]
        or [
            f"{name}.{key} is {vars(theirs[name]).get(key)!r}, expected {value!r}"
            for name, module in ours.items()
            if name
            for key, value in vars(module).items()
            if not (key.startswith("_") or key in TRAINING_ONLY)
            if comparable(vars(theirs[name]).get(key)) != comparable(value)
        ]
    )
    if differences:
        raise CheckpointError(f"modules do not fit the recipe: {listed(differences)}")


def kind(module: nn.Module | None) -> str:
    """Return the name of the class of a module, for messages."""
    return "none" if module is None else type(module).__name__


def comparable(value: object) -> object:
    """Return a constant, or the type of any other attribute of a module."""
    return value if isinstance(value, bool | int | float | str | tuple) else type(value)


def is_finite(tensor: Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Both are NaN if any value is. 8-bit types have no such operation.
    low, high = (tensor if tensor.element_size() > 1 else tensor.float()).aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def shape_mismatches(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> list[str]:
    """Describe every tensor that is missing, unexpected or of another shape, or that is not a floating-point tensor."""

    def shape(state: Mapping[str, Tensor], name: str) -> str:
        if name not in state:
            return "none"
        odd = name in expected and expected[name].is_floating_point() and not state[name].is_floating_point()
        return f"{list(state[name].shape)}{f' of {state[name].dtype}' if odd else ''}"

    names = dict.fromkeys([*expected, *actual])
    shapes = {name: (shape(expected, name), shape(actual, name)) for name in names}
    return [
        f"{name}: expected {ours}, got {theirs}" for name, (ours, theirs) in shapes.items() if ours != theirs
    ]
