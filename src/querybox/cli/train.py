"""``querybox train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from querybox.errors import ConfigError

if TYPE_CHECKING:
    from querybox.training import RunSettings

RUN_FILES = {".yaml", ".yml"}


def train(
    target: str | None = None,
    /,
    *overrides: str,
    output: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    max_time: str | None = None,
    weights: str | None = None,
) -> None:
    """Train a detector.

    Settings come from the recipe, the run file and the command line; later ones override earlier ones. The run folder
    receives weights, metrics, a report, and `run.yaml`, from which the run can be repeated.

    ```
    # A dataset with default settings, and with two settings changed:
    querybox train photos/
    querybox train photos/ recipe=detr_small data.image_size=320

    # Fine-tune the weights of another detector, with any classes:
    querybox train photos/ --weights detr-r50.pth

    # A run file; with one setting changed; resume a run:
    querybox train run.yaml
    querybox train run.yaml train.lr=2e-4 --output runs/second
    querybox train runs/first/run.yaml --resume

    # Several GPUs or machines:
    accelerate launch -m querybox train run.yaml
    ```

    Args:
        target: A run file (YAML), in which paths are relative to the file; or a dataset: COCO, Pascal VOC or YOLO.
        overrides: Settings by dotted name, such as train.lr=2e-4 or data.val=photos/val.json.
        output: The run folder.
        resume: Resume the run in the run folder.
        max_time: Stop after this time, such as 30m or 1h30m, with an evaluation and a checkpoint.
        weights: A checkpoint to fine-tune: of querybox, facebookresearch, MMDetection or Hugging Face, or a name on the
            Hub, such as hf://facebook/detr-resnet-50. It determines the model; its classes are matched by name.
    """
    options: dict[str, Any] = {}
    if output is not None:
        options["output"] = str(output)
    if weights is not None:
        options["weights"] = weights
    if max_time is not None:
        options["train"] = {"max_time": max_time}
    settings = read_settings(target, overrides, options)

    from accelerate import PartialState

    from querybox.training import train as run

    result = run(settings, resume=resume)
    if PartialState().is_main_process:
        numbers = [f"{name} {result.metrics[name]:.3f}" for name in ("AP", "AP50") if name in result.metrics]
        print(f"Results are in {result.run_dir}" + (f" ({', '.join(numbers)})" if numbers else ""))


def read_settings(target: str | None, overrides: Sequence[str], options: Mapping[str, Any]) -> RunSettings:
    """Resolve the settings of a run.

    Args:
        target: The run file or the dataset.
        overrides: Settings that override it, such as ``["train.lr=2e-4"]``.
        options: Nested settings that override both.

    Raises:
        ConfigError: There is no such file, or a setting is unknown or invalid.
    """
    from querybox.runfile import merge, read_overrides
    from querybox.training import RunSettings

    if target is not None and "=" in target and not Path(target).exists():
        overrides, target = [target, *overrides], None  # settings only
    values = {} if target is None else read_target(Path(target))
    values = merge(merge(values, read_overrides(overrides)), options)
    if "data" not in values:
        raise ConfigError("querybox train got no dataset; expected a dataset or a run file: see --help")
    command_line = "command line" if overrides or options else ""
    return RunSettings.parse(values, where=" and ".join(filter(None, [target, command_line])))


def read_target(path: Path) -> dict[str, Any]:
    """Return the settings of a run file, or the settings that train on a dataset."""
    from querybox.runfile import read_run_file

    if path.suffix.lower() in RUN_FILES:
        values = read_run_file(path)
        if "names" not in values:  # otherwise the data.yaml of a YOLO dataset
            return values
    return {"data": {"train": str(path)}}
