"""``querybox export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from querybox.errors import ConfigError


def export(
    model: Path,
    file: Path | None = None,
    /,
    *,
    to: Literal["onnx", "openvino", "torch"],
    precision: Literal["float32", "bf16", "int8"] = "float32",
    calibrate: Path | None = None,
    split: str | None = None,
) -> None:
    """Write a model to a file that other programs run, and prove that it answers as the model does.

    The file takes RGB images of any size in batches of any size; normalisation, padding mask and postprocessing are
    inside. `querybox predict` and `querybox evaluate` take it in the place of a model.

    ```
    querybox export run --to onnx                           # the run's best model, to best.onnx beside it
    querybox export model.safetensors fast.xml --to openvino --precision bf16
    querybox export run small.xml --to openvino --precision int8 --calibrate photos/ --split train
    querybox predict small.xml photos/
    ```

    Args:
        model: Weights of any layout, or a run folder: its best model, else its last.
        file: Where to write; beside the model where it is left out.
        to: onnx (ONNX Runtime and others), openvino (the fastest on CPUs), or torch (torch.export).
        precision: What it is computed in; openvino alone has bf16 and int8.
        calibrate: With int8: labelled images like those it will see. AP on all of them is measured before and after.
        split: Which split of that dataset.
    """
    from querybox.checkpoints.find import find_weights
    from querybox.data import read_dataset
    from querybox.detector import Detector
    from querybox.exporting import export as run
    from querybox.exporting.write import SUFFIXES

    if split is not None and calibrate is None:
        raise ConfigError("--split names a part of the data of --calibrate, which is missing")
    source = find_weights(model)
    detector = Detector.load(source)
    target = file or source.with_suffix(SUFFIXES[to])
    data = None if calibrate is None else read_dataset(calibrate, split)
    done = run(detector, target, to=to, precision=precision, calibration=data)
    proof = done.proof
    print(
        f"The answers are the detector's: on {proof.batches} batches scores differ by at most {proof.scores:.1g}, "
        f"boxes by {proof.boxes:.1g} of the image"
    )
    if done.AP is not None:
        before, after = done.AP
        print(f"AP on {len(data.images) if data else 0} images: float32 {before:.4f}, int8 {after:.4f}")
    sizes = ", ".join(f"{each} ({each.stat().st_size / 1e6:.1f} MB)" for each in done.files)
    print(f"Wrote {sizes}. Run it: querybox predict {target} IMAGES")
