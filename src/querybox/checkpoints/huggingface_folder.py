"""A folder as `transformers` reads it: the weights, what the model is, and how an image is made ready for it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from querybox.checkpoints.files import save_tensors
from querybox.files import atomic, write_text
from querybox.models import Recipe
from querybox.structures import Preprocessing


def write_folder(folder: Path, tensors: Mapping[str, Tensor], files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``model.safetensors`` and JSON files; the folder appears when it is complete.

    Args:
        folder: It does not exist, or is empty.
        tensors: The weights under Hugging Face's names.
        files: Values by file name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        complete = Path(temporary) / folder.name
        complete.mkdir()
        # Heads that are listed twice are one tensor, and the format has no two names for the same memory.
        held = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        with atomic(complete / "model.safetensors") as file:
            save_tensors(held, file, {"format": "pt"})  # transformers asks for it
        for name, values in files.items():
            write_text(complete / name, json.dumps(values, indent=2) + "\n")
        complete.replace(folder)


def model_config(recipe: Recipe, rows: Sequence[str]) -> dict[str, Any]:
    """Return what ``config.json`` says of a model.

    Args:
        recipe: The model's; of a kind that Hugging Face has.
        rows: Names of the class head's rows, without "no object".
    """
    return {
        **recipe.huggingface_config(),
        "id2label": {str(row): name for row, name in enumerate(rows)},
        "label2id": {name: row for row, name in enumerate(rows)},
    }


def preprocessor_config(preprocessing: Preprocessing, kind: type[Recipe]) -> dict[str, Any]:
    """Return what ``preprocessor_config.json`` says of the images of this kind of model."""
    return {
        "image_processor_type": f"{kind.huggingface_prefix}ImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.short_side, "longest_edge": preprocessing.long_side},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in preprocessing.mean],
        "image_std": [value / 255 for value in preprocessing.std],
        "do_pad": True,
    }
