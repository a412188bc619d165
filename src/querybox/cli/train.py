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

    Settings come from the recipe, then the run file, then the command line; each overrules the one before.
    The run folder keeps weights, metrics, a report, and `run.yaml`, which repeats the run.

    ```
    # A dataset, with the defaults; with two settings of your own:
    querybox train photos/
    querybox train photos/ recipe=detr_small data.image_size=320

    # From the weights of another detector, whatever its classes:
    querybox train photos/ --weights detr-r50.pth

    # A run file; with one setting changed; where a run was stopped:
    querybox train run.yaml
    querybox train run.yaml train.lr=2e-4 --output runs/second
    querybox train runs/first/run.yaml --resume

    # Several GPUs or machines:
    accelerate launch -m querybox train run.yaml
    ```

    Args:
        target: A run file (YAML), whose paths start from its own folder; or a dataset: COCO, Pascal VOC or YOLO.
        overrides: Settings by dotted name, such as train.lr=2e-4 or data.val=photos/val.json.
        output: The run folder.
        resume: Go on with the run in the run folder.
        max_time: Stop after this long, such as 30m or 1h30m, with an evaluation and a checkpoint.
        weights: A checkpoint to start from: of querybox, facebookresearch, MMDetection or Hugging Face, also by its
            name on the hub, such as hf://facebook/detr-resnet-50. Its model is the run's, its classes are kept by name.
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
        overrides: What overrules it, such as ``["train.lr=2e-4"]``.
        options: What overrules both, as nested values.

    Raises:
        ConfigError: There is no such file, or a setting is unknown or does not fit.
    """
    from querybox.runfile import merge, read_overrides
    from querybox.training import RunSettings

    if target is not None and "=" in target and not Path(target).exists():
        overrides, target = [target, *overrides], None  # nothing but settings
    values = {} if target is None else read_target(Path(target))
    values = merge(merge(values, read_overrides(overrides)), options)
    if "data" not in values:
        raise ConfigError(
            "querybox train got nothing to train on; expected a dataset or a run file: see --help"
        )
    commands = "command line" if overrides or options else ""
    return RunSettings.parse(values, where=" and ".join(filter(None, [target, commands])))


def read_target(path: Path) -> dict[str, Any]:
    """Return the settings of a run file, or those that mean a dataset."""
    from querybox.runfile import read_run_file

    if path.suffix.lower() in RUN_FILES:
        values = read_run_file(path)
        if "names" not in values:  # a YOLO dataset's data.yaml says the names of its classes
            return values
    return {"data": {"train": str(path)}}
