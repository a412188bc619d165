"""``querybox export``."""

from __future__ import annotations

import gc
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from querybox.checkpoints.find import EXPORTED, Format, find_weights
from querybox.cli.sizes import parse_size
from querybox.cli.streams import print_text
from querybox.errors import ConfigError
from querybox.files import require_own
from querybox.text import counted

if TYPE_CHECKING:
    from querybox.exporting import Exported


def export(
    model: Path,
    file: Path | None = None,
    /,
    *,
    to: Format,
    precision: Literal["auto", "float32", "bf16", "fp16", "int8"] = "float32",
    size: str | None = None,
    calibrate: str | None = None,
    split: str | None = None,
    allow_network: bool = False,
) -> None:
    """Export a model for another runtime, and verify that its predictions are those of the model.

    The exported model takes RGB images of any size in batches of any size, unless --size fixes it. It includes
    normalisation, padding mask and postprocessing. `querybox predict` and `querybox evaluate` accept it as a model.

    ```
    querybox export run --to onnx                           # the run's best model, as best.onnx beside it
    querybox export model.safetensors fast.xml --to openvino --precision bf16
    querybox export run half.onnx --to onnx --precision fp16  # half as large, for GPUs
    querybox export run small.xml --to openvino --precision int8 --calibrate photos/ --split train
    querybox export run fixed.xml --to openvino --size 640x640  # lower latency, for images of this size
    querybox export run phone.pte --to executorch --size 640x640
    querybox predict small.xml photos/
    ```

    Args:
        model: A checkpoint of any layout, or a run folder: its best model, or else its last.
        file: The file to write; by default beside the model, or in the current folder if it is a name on the Hub or a
            short name.
        to: onnx (ONNX Runtime and others), openvino (the fastest on x86 CPUs), torch (torch.export), or executorch
            (phones and boards; requires --size).
        precision: Precision of the computations; bf16 and int8 require openvino, fp16 requires onnx. auto is bf16 for
            openvino if this machine's CPU computes it natively, otherwise float32.
        size: Fixed height x width of the images, which are resized to it, or to fit and padded, and run one at a time;
            by default the model takes images and batches of any size.
        calibrate: For int8: a dataset, or the URL of shards, with images like those to predict on. AP on it is measured
            before and after.
        split: Split of that dataset.
        allow_network: Open the URLs of shards that the dataset is, or that its file has.
    """
    from querybox.data import read_dataset
    from querybox.detector import Detector
    from querybox.exporting import export as run
    from querybox.terminal import Console

    source = find_weights(model)
    # The file of a name is in the Hub's cache.
    beside = source.with_suffix("") if model.exists() else Path(model.name.partition("@")[0])
    shape = None if size is None else parse_size(size)
    target = file or beside.with_name(beside.name + EXPORTED[to])
    require_own(target)
    weights = target.with_suffix(".bin")
    if to == "openvino" and weights.exists() and not target.exists():
        raise ConfigError(
            f"{weights}: exists, but not {target}, whose weights it would be; expected a new file: set another name"
        )
    detector = Detector.load(source)
    data = None if calibrate is None else read_dataset(calibrate, split, allow_network=allow_network)
    gc.set_threshold(100_000, 50)  # a trace makes millions of objects, few of them in cycles
    with Console(stderr=True).status("loading") as status:
        done = run(
            detector,
            target,
            to=to,
            precision=precision,
            size=shape,
            calibration=data,
            callback=status.update,
        )
    print_comparison(done, len(data.images) if data else 0)
    sizes = ", ".join(f"{each} ({each.stat().st_size / 1e6:.1f} MB)" for each in done.files)
    print_text(f"Wrote {sizes}. Run it: querybox predict {quote(str(target))} IMAGES")


def print_comparison(done: Exported, images: int) -> None:
    """Print how far the predictions of an exported model are from the detector's.

    Args:
        done: The result of the export.
        images: Number of calibration images.
    """
    checked = done.verification
    print_text(
        f"The predictions in {checked.precision} are those of the detector: "
        f"on {counted(checked.batches, 'batch', 'batches')} scores differ by at most "
        f"{checked.scores:.1g}, boxes by {checked.boxes:.1g} of the image"
        f"{'' if checked.masks is None else f', masks by {checked.masks:.1g} on average'}"
    )
    for name, precisions in (("AP", done.AP), ("Mask AP", done.AP_masks)):
        if precisions is not None:
            before, after = precisions
            print_text(f"{name} on {images} images: float32 {before:.4f}, int8 {after:.4f}")
