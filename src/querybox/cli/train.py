"""``querybox train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from querybox.cli.streams import print_summary
from querybox.errors import ConfigError

if TYPE_CHECKING:
    from querybox.training.settings import Given


def train(
    target: str | None = None,
    /,
    *overrides: str,
    output: Path | None = None,
    resume: bool = False,
    max_time: str | None = None,
    weights: str | None = None,
) -> None:
    """Train a detector.

    Model, image size and schedule are chosen from the data, the device and --max-time, and what was chosen is printed.
    A recipe (querybox info lists them), a run file and the command line set them instead; later ones override earlier
    ones. The run folder receives weights, metrics, a report, and run.yaml with all settings, which repeats the run.

    ```
    # A dataset, with everything chosen; with a recipe, and one setting changed:
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
        target: A run file (YAML), in which paths are relative to the file; or a dataset in any format; or the URL of
            shards, with data.allow_network=true.
        overrides: Settings by name, such as train.lr=2e-4 or data.val=photos/val.json; the last part of a name is
            enough: lr=2e-4.
        output: The run folder; runs/ and the name of the dataset by default.
        resume: Resume the run in the run folder.
        max_time: Stop after this time, such as 30m or 1h30m, with an evaluation and a checkpoint.
        weights: A checkpoint to fine-tune: of querybox, facebookresearch, MMDetection or Hugging Face, a name on the
            Hub, such as hf://facebook/detr-resnet-50, or the short name of public weights, such as detr-r50 (see
            querybox info --models). It determines the model; its classes are matched by name.
    """
    options = {"output": output, "weights": weights, "train.max_time": max_time}
    given = read_settings(
        target, overrides, {name: value for name, value in options.items() if value is not None}
    )

    from accelerate import PartialState

    from querybox.training.run import train_given

    result = train_given(given, resume=resume)
    if PartialState().is_main_process:
        numbers = [f"{name} {result.metrics[name]:.3f}" for name in ("AP", "AP50") if name in result.metrics]
        print_summary(f"Results are in {result.run_dir}" + (f" ({', '.join(numbers)})" if numbers else ""))


def read_settings(target: str | None, overrides: Sequence[str], options: Mapping[str, Any]) -> Given:
    """Resolve the settings of a run.

    Args:
        target: The run file or the dataset.
        overrides: Settings that override it, such as ``["train.lr=2e-4"]``.
        options: Settings that override both, by name.

    Raises:
        ConfigError: There is no such file, or a setting is unknown or invalid.
    """
    from querybox.checkpoints.find import is_model
    from querybox.runfile import read_overrides
    from querybox.training import overrides as settings

    if target is not None and is_model(Path(target)) and not Path(target).is_dir():
        data = next((word for word in overrides if "=" not in word), "DATA")
        raise ConfigError(
            f"{target}: is a model; expected a dataset or a run file; to fine-tune it: querybox train {quote(data)} "
            f"--weights {quote(target)}"
        )
    if target is not None and "=" in target.partition("://")[0] and not Path(target).exists():
        overrides, target = [target, *overrides], None  # settings only
    given = {**read_overrides(overrides), **options}
    return settings.read_settings(target, given, where="command line")


def setting_hint(words: Sequence[str]) -> str | None:
    """Return how to write the settings among the options of a command line, or how the device is selected.

    The result is None if there are no such options.

    Args:
        words: Arguments of ``querybox train``, such as ``["photos", "--epochs", "5"]``.
    """
    from querybox.training.overrides import DEVICE_NAMES, describe_device, short_names

    known, options = short_names(), {name.replace("_", "-") for name in signature(train).parameters}
    hints = []
    for word, following in zip_longest(words, words[1:], fillvalue="--"):
        option, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or option in options:
            continue
        if option in DEVICE_NAMES:
            return describe_device()
        if full := known.get(option.replace("-", "_").rpartition(".")[2]):
            value = value if equals else "..." if following.startswith("--") else following
            hints.append(f"{full[-1]}={value}")
    return f"settings are written without dashes: {' '.join(hints)}" if hints else None
