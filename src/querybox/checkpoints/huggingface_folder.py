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
from querybox.structures import Preprocessing

PREFIXES = {"detr": "Detr", "deformable_detr": "DeformableDetr"}
"""What the classes of `transformers` for a kind of model begin with."""


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


def model_config(settings: Mapping[str, Any], rows: Sequence[str]) -> dict[str, Any]:
    """Return what ``config.json`` says of a DETR or Deformable DETR.

    Args:
        settings: Those of its recipe.
        rows: Names of the class head's rows, without "no object".
    """
    return {
        "architectures": [f"{PREFIXES[settings['kind']]}ForObjectDetection"],
        "model_type": settings["kind"],
        "use_timm_backbone": True,
        "backbone": settings["backbone"].partition(".")[0],  # without the tag of its ImageNet weights
        "use_pretrained_backbone": False,  # its weights are in the folder
        "d_model": settings["width"],
        "encoder_layers": settings["encoder_layers"],
        "decoder_layers": settings["decoder_layers"],
        "encoder_attention_heads": settings["heads"],
        "decoder_attention_heads": settings["heads"],
        "encoder_ffn_dim": settings["feedforward"],
        "decoder_ffn_dim": settings["feedforward"],
        "dropout": settings["dropout"],
        "attention_dropout": settings["dropout"],
        "activation_dropout": settings["dropout"],
        "num_queries": settings["queries"],
        **(detr_config(settings) if settings["kind"] == "detr" else deformable_config(settings)),
        "id2label": {str(row): name for row, name in enumerate(rows)},
        "label2id": {name: row for row, name in enumerate(rows)},
    }


def detr_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of DETR alone."""
    return {
        "dilation": settings["dilation"],
        "position_embedding_type": settings["position"],
        "auxiliary_loss": settings["norm_between"],
    }


def deformable_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of Deformable DETR alone."""
    return {
        "num_feature_levels": settings["levels"],
        "encoder_n_points": settings["points"],
        "decoder_n_points": settings["points"],
        "with_box_refine": settings["refine"],
        "two_stage": settings["two_stage"],
        "two_stage_num_proposals": settings["queries"],
    }


def preprocessor_config(preprocessing: Preprocessing, kind: str) -> dict[str, Any]:
    """Return what ``preprocessor_config.json`` says of the images of this kind of model."""
    return {
        "image_processor_type": f"{PREFIXES[kind]}ImageProcessor",
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
