"""``querybox convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def convert(
    model: Path,
    target: Path,
    /,
    *,
    to: Literal["facebook", "mmdet2", "mmdet3", "huggingface", "querybox"],
    rows: Literal[80, 91] | None = None,
    dilation: bool | None = None,
    heads: int | None = None,
) -> None:
    """Write a checkpoint for another system: the same numbers under its names.

    The model's own layout is recognised. The way there and back gives the very same tensors.

    ```
    querybox convert run detr --to huggingface                  # for transformers
    querybox convert run detr.pth --to facebook                 # for the authors' own code
    querybox convert detr-r50.pth r50.safetensors --to querybox # from there
    querybox convert detr-r50.pth r50-80.pth --to mmdet3 --rows 80
    ```

    Args:
        model: A checkpoint of any layout, a Hugging Face folder, hf://owner/name, or a run folder: its best model.
        target: A new .pth file (facebook, mmdet2, mmdet3), .safetensors file (querybox) or folder (huggingface).
        to: Who shall read it: facebook (the authors' own code, also Deformable DETR's and DINO's), MMDetection 2.x
            or 3.x, transformers, or querybox.
        rows: For COCO's classes: bring the class head to 80 rows, as MMDetection has it, or 91, as the authors' code
            and Hugging Face have it. Each class keeps its logit. 80 drops the rows of no class, and DETR's softmax
            gives their small probability to the others: scores grow a little. 91 adds rows of probability zero: no
            score changes. Left out, the rows stay as they are.
        dilation: The last stage is dilated (DC5), which no tensor shows.
        heads: Attention heads where they are not 8, which no tensor shows.
    """
    from querybox.checkpoints.convert import convert as run

    run(model, target, to=to, rows=rows, dilation=dilation, heads=heads)
    print(f"Wrote {target}")
