"""Write a folder for `transformers`: weights, model configuration and image preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from querybox.checkpoints.files import save_tensors
from querybox.checkpoints.statements import STUFF_ROWS
from querybox.files import atomic, move, write_text
from querybox.models import Recipe
from querybox.structures import Preprocessing
from querybox.temporary import temporary_folder
from querybox.text import to_json


def write_folder(folder: Path, tensors: Mapping[str, Tensor], files: Mapping[str, Mapping[str, Any]]) -> None:
    """Write ``model.safetensors`` and JSON files; the folder is created atomically.

    Args:
        folder: The folder, which must not exist or be empty.
        tensors: The weights under Hugging Face's names.
        files: Content of the JSON files by file name.
    """
    with temporary_folder(folder) as temporary:
        complete = temporary / folder.name
        complete.mkdir()
        # Shared heads are listed twice, and the format does not support tensors that share memory.
        cloned = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        with atomic(complete / "model.safetensors") as file:
            save_tensors(cloned, file, {"format": "pt"})  # required by transformers
        for name, values in files.items():
            write_text(complete / name, to_json(values, indent=2) + "\n")
        if folder.exists():
            folder.rmdir()  # empty; Windows does not replace folders
        move(complete, folder)


def model_config(recipe: Recipe, rows: Sequence[str], stuff: Sequence[int] = ()) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Args:
        recipe: The recipe of the model, of a kind that Hugging Face has.
        rows: Names of the rows of the class head, without no-object.
        stuff: Rows of classes of stuff.
    """
    return {
        **recipe.huggingface_config(),
        **({STUFF_ROWS: list(stuff)} if stuff else {}),
        "id2label": {str(row): name for row, name in enumerate(rows)},
        "label2id": {name: row for row, name in enumerate(rows)},
    }


def preprocessor_config(preprocessing: Preprocessing, kind: type[Recipe]) -> dict[str, Any]:
    """Return the content of ``preprocessor_config.json`` for this kind of model."""
    short, long = preprocessing.short_side, preprocessing.long_side
    stretched = preprocessing.resizing == "stretch"
    size = {"height": short, "width": long} if stretched else {"shortest_edge": short, "longest_edge": long}
    return {
        "image_processor_type": kind.huggingface_processor,
        "format": "coco_detection",
        "do_resize": True,
        "size": size,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in preprocessing.mean],
        "image_std": [value / 255 for value in preprocessing.std],
        "do_pad": not stretched,
    }
