"""A detector in a file: what it is beside its tensors, and how it is built around them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from querybox.checkpoints import native
from querybox.errors import CheckpointError, ConfigError
from querybox.models import parse
from querybox.models.recipe import Recipe
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category, Preprocessing
from querybox.text import listed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """All that a detector is, beside its tensors."""

    recipe: Recipe
    categories: tuple[Category, ...]
    preprocessing: Preprocessing

    def card(self) -> dict[str, Any]:
        """Return the same as plain values, for a file's header."""
        return {
            # The backbone's weights are in the file: where they once came from no longer matters.
            "recipe": self.recipe.replace(backbone_weights=None).model_dump(mode="json"),
            "categories": [dataclasses.asdict(category) for category in self.categories],
            "preprocessing": dataclasses.asdict(self.preprocessing),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> Blueprint:
        """Read what `card` returned.

        Raises:
            CheckpointError: It is something else.
        """
        try:
            return cls(
                recipe=parse(TypeAdapter(dict[str, Any]).validate_python(card["recipe"])),
                categories=TypeAdapter(tuple[Category, ...]).validate_python(card["categories"]),
                preprocessing=TypeAdapter(Preprocessing).validate_python(card["preprocessing"]),
            )
        except (KeyError, TypeError, ValidationError, ConfigError) as error:
            raise CheckpointError(f"its description of the detector cannot be read ({error})") from error


def save(detector: DetectionTransformer, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a detector to one file; see `Detector.save`."""
    if detector.recipe is None:
        raise CheckpointError(f"{path}: a detector that no recipe built has no settings to be rebuilt from")
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in detector.state_dict().items()
    }
    blueprint = Blueprint(
        recipe=detector.recipe, categories=detector.categories, preprocessing=detector.preprocessing
    )
    native.write(Path(path), tensors, blueprint.card())


def restore(blueprint: Blueprint, state: Mapping[str, Tensor]) -> DetectionTransformer:
    """Build a detector around tensors, which it then owns: no random weights are made, nothing is copied.

    Args:
        blueprint: What it is.
        state: All of its tensors, by name; floating ones become float32.

    Returns:
        The detector, in evaluation mode.

    Raises:
        CheckpointError: A tensor is missing, has another shape, or belongs nowhere; all of them are listed.
    """
    with torch.device("meta"):
        detector = blueprint.recipe.build(blueprint.categories)
    problems = misfits(detector.state_dict(), state)
    if problems:
        raise CheckpointError(f"tensors do not fit the model: {listed(problems)}")
    detector.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        assign=True,
    )
    detector.preprocessing = blueprint.preprocessing
    return detector.eval()


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Say of every tensor that is missing, surplus or of another shape what was expected and what there is."""

    def shape(state: Mapping[str, Tensor], name: str) -> str:
        return str(list(state[name].shape)) if name in state else "none"

    names = dict.fromkeys([*wanted, *given])
    shapes = {name: (shape(wanted, name), shape(given, name)) for name in names}
    return [
        f"{name}: expected {mine}, got {theirs}" for name, (mine, theirs) in shapes.items() if mine != theirs
    ]
