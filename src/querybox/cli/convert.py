"""``querybox convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from querybox.cli.streams import print_text


def convert(
    model: Path,
    target: Path,
    /,
    *,
    to: Literal["facebook", "mmdet2", "mmdet3", "huggingface", "querybox"],
    rows: Literal[80, 91] | None = None,
    dilation: Annotated[bool | None, Parameter(negative="--no-dilation")] = None,
    heads: int | None = None,
    activation: Literal["relu", "silu"] | None = None,
    discrete: bool | None = None,
) -> None:
    """Convert a checkpoint to the layout of another library.

    The layout of the model is recognised. Converting back gives bit-identical tensors.

    ```
    querybox convert run detr --to huggingface                  # for transformers
    querybox convert run detr.pth --to facebook                 # for the authors' code
    querybox convert detr-r50.pth r50.safetensors --to querybox # from the authors' code
    querybox convert detr-r50.pth r50-80.pth --to mmdet3 --rows 80
    ```

    Args:
        model: A checkpoint of any layout, a Hugging Face folder, hf://owner/name, or a run folder: its best model.
        target: A new .pth file (facebook, mmdet2, mmdet3), .safetensors file (querybox) or folder (huggingface).
        to: The target layout: facebook (the code of the model's authors), mmdet2 or mmdet3 (MMDetection),
            huggingface (transformers), or querybox.
        rows: For COCO's classes: convert the class head to 80 rows, as in MMDetection, or to 91, as in the authors'
            code and Hugging Face. Each class keeps its logit. 80 drops the rows of unused ids, so DETR's softmax
            assigns their small probability to the other classes and scores increase slightly. 91 adds rows of
            probability zero, which changes no score. By default the rows are kept.
        dilation: The last stage is dilated (DC5), which cannot be inferred from the tensors.
        heads: Number of attention heads if it is not 8, which cannot be inferred from the tensors.
        activation: silu for the weights of DEIM, which cannot be distinguished from those of RT-DETRv2 and
            D-FINE.
        discrete: Single cells are sampled, as in the DSP weights of RT-DETRv2, which cannot be inferred from the
            tensors.
    """
    from querybox.checkpoints.convert import convert as run

    run(
        model,
        target,
        to=to,
        rows=rows,
        dilation=dilation,
        heads=heads,
        activation=activation,
        discrete=discrete,
    )
    print_text(f"Wrote {target}")
