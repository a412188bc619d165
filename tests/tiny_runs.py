"""Settings of tiny runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_models import TRAINABLE

from querybox.training import RunSettings


def settings_maker(boxes_json: Path, folder: Path) -> Callable[..., RunSettings]:
    """Make the settings of a tiny run into `output` in a folder, with settings of `train` that differ."""

    def make(
        output: str = "run",
        *,
        model: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        **train: Any,
    ) -> RunSettings:
        return RunSettings.parse(
            {
                "recipe": "detr_r50",
                "model": {**TRAINABLE, "decoder_layers": 1, **(model or {})},
                "data": {
                    "train": str(boxes_json),
                    "val": "none",
                    "image_size": 64,
                    "workers": 0,
                    **(data or {}),
                },
                "train": {"epochs": 2, "batch_size": 4, "lr": 1e-3, **train},
                "output": str(folder / output),
            }
        )

    return make
