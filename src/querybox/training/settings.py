"""The settings of a training run, which a YAML file or the command line can set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from querybox.data import DataSettings
from querybox.data.settings import NO_VALIDATION
from querybox.duration import Duration
from querybox.needs import Needs
from querybox.precision import Precision, present_name
from querybox.settings import PathText, Settings

STRONG = "data.photometric or data.zoom_out or data.iou_crop or data.mosaic or data.copy_paste or data.mixup"
"""Condition for settings of strong augmentation, which begins and ends at a share of the run."""
MIXING = "data.mosaic_until>data.strong_from"
"""Condition without which mosaic, copy-paste and mixup end before they begin."""
MAX_COUNT = 2**53
"""Largest number of epochs, updates or images: up to it every integer is a floating-point number."""
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]


class TrainSettings(Settings):
    """Training settings.

    The defaults are those of DETR with the 150-epoch schedule; other kinds of models have their own, see
    `querybox.models.training_defaults`.
    """

    epochs: Count = 150
    batch_size: Count = 16
    """Number of images per update, over all processes and micro-batches."""
    accumulate: Count | Literal["auto"] = 1
    """Number of micro-batches per update, whose gradients are accumulated to save memory. `auto` measures the memory of
    a step and takes as few as fit; `run.yaml` holds their number. A published recipe is trained with `auto` if neither
    this nor `batch_size` is set."""
    lr: PositiveFloat = 1e-4
    backbone_lr: PositiveFloat = 1e-5
    backbone_norm_lr: PositiveFloat | None = None
    """Learning rate of the norms in the backbone; null for `backbone_lr`. DEIM trains them as fast as all others."""
    sampling_lr: PositiveFloat | None = None
    """Learning rate of the layers that predict sampling offsets and reference points; null for `lr`."""
    weight_decay: NonNegativeFloat = 1e-4
    decay_norms: bool = True
    """Apply weight decay to norms and biases too, that is, to parameters of one dimension."""
    clip: PositiveFloat | None = 0.1
    """Maximum total norm of the gradients; null for no clipping."""
    schedule: Literal["step", "cosine", "flat_cosine"] = "step"
    """`step` multiplies the learning rates by 0.1 at each milestone; `cosine` decreases them to 0 at the end of the
    run, which is the last epoch or `max_time`; `flat_cosine` (DEIM) decreases them by half between two milestones."""
    milestones: tuple[Count, ...] | None = None
    """Epochs after which `step` decays; null for once, after two thirds of the epochs. For `flat_cosine`, the epochs
    after which the decrease begins and ends; null for half of the epochs and all of them."""
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    """Number of updates over which the learning rates increase to their full value: linearly, or with the square of the
    updates for `flat_cosine`."""
    precision: Annotated[Precision, BeforeValidator(present_name)] = "float32"
    """Precision of the computations; weights stay in float32. `auto` is bf16 if the device computes it natively,
    otherwise float32."""
    compile: bool = False
    """Compile the backbone with `torch.compile`, once for all image sizes; requires a C++ compiler."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average of the weights, e.g. 0.9997, which is evaluated and saved."""
    ema_warmup: Count | None = None
    """Time constant of the decay in updates (RT-DETR): after n updates it is `ema` * (1 - exp(-n / `ema_warmup`)). null
    for the smaller one of `ema` and (1 + n) / (10 + n)."""
    ema_restart: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay after strong augmentation has ended (`data.strong_until`), from when on the weights and their average
    continue from the best average so far (D-FINE); null to go on as before."""
    freeze: tuple[str, ...] = ()
    """Dotted names of frozen modules, such as `backbone` or `encoder.layers.0`."""
    evaluate_every: Count = 1
    """Number of epochs between evaluations; there is always one at the end."""
    patience: Count | None = None
    """Stop after this many evaluations without an improvement of the AP."""
    max_time: Duration | None = None
    """Time limit, such as `30m` or `1h30m`, including the parts before resuming."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    trackers: tuple[str, ...] = ()
    """Experiment trackers of accelerate, such as `tensorboard`."""

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches per update of resolved settings."""
        assert self.accumulate != "auto"
        return self.accumulate

    @model_validator(mode="after")
    def check(self) -> Self:
        """Reject inconsistent settings."""
        if self.accumulate != "auto" and self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulate = {self.accumulate}"
            )
        if self.schedule == "flat_cosine" and self.milestones is not None:
            ascending = sorted(set(self.milestones)) == list(self.milestones)
            if len(self.milestones) != 2 or not ascending:
                raise ValueError(
                    f"milestones are {list(self.milestones)}; expected two for flat_cosine, in ascending order"
                )
        return self


NEEDS: Needs = (
    ("data.val_split", f"not data.val={NO_VALIDATION}"),
    ("data.val_fraction", "not data.val"),
    ("data.val_fraction", "not data.val_split"),
    ("data.overlap", "data.tile"),
    ("data.crop_scales", "data.crop"),
    ("data.crop_range", "data.crop"),
    ("data.strong_from", STRONG),
    ("data.strong_until", f"{STRONG} or data.multi_scale or train.ema_restart"),
    ("data.mosaic_until", "data.mosaic or data.copy_paste or data.mixup"),
    *((f"data.{name}", MIXING) for name in ("mosaic_until", "mosaic", "copy_paste", "mixup")),
    ("model.backbone_weights", "not weights"),
    ("model.normalize", "not weights"),
    ("model.encoder_feedforward", "model.encoder_layers"),
    ("model.varifocal", "not model.matchability"),
    ("model.mask_cost", "model.masks"),
    ("model.dice_cost", "model.masks"),
    ("model.frozen_stride", "not train.freeze=backbone"),
    ("model.frozen_batch_norms", "not train.freeze=backbone"),
    ("train.backbone_lr", "not train.freeze=backbone"),
    ("train.backbone_norm_lr", "not train.freeze=backbone"),
    ("train.backbone_norm_lr", "not model.frozen_batch_norms"),
    ("train.sampling_lr", "model.points"),
    ("train.milestones", "train.schedule=step or train.schedule=flat_cosine"),
    ("train.ema_warmup", "train.ema"),
    ("train.ema_restart", "train.ema"),
    ("train.ema_restart", "not data.strong_until=1.0"),
    ("train.evaluate_every", f"not data.val={NO_VALIDATION}"),
    ("train.patience", f"not data.val={NO_VALIDATION}"),
)
"""Settings that have an effect only with others; see `querybox.needs`."""
ALWAYS_WRITTEN = {
    *("accumulate", "backbone_lr", "batch_size", "clip", "ema", "epochs", "evaluate_every", "freeze", "lr"),
    *("max_time", "milestones", "patience", "precision", "schedule", "seed", "trackers", "warmup_steps"),
    "weight_decay",
}
"""Settings of `train` in the ``run.yaml`` of every version, null ones included."""


class RunSettings(Settings):
    """All settings of a run; the resolved values are written to its folder as ``run.yaml``."""

    recipe: str | None = None
    """Name of a recipe, see `querybox.models`, or `auto`, which chooses everything that is not set from the data, the
    device and the time limit, see `querybox.training.auto`. null for the model of the `weights`, or `auto` without."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Settings of the recipe to change."""
    data: DataSettings
    train: TrainSettings = TrainSettings()
    weights: PathText | None = None
    """A checkpoint of any layout to start from: a file, a Hugging Face folder, a name on the Hub such as
    `hf://facebook/detr-resnet-50`, or the short name of public weights such as `detr-r50`."""
    output: PathText | None = None
    """The run folder; by default a new one in `runs`, named after the dataset."""

    @property
    def is_record(self) -> bool:
        """Whether these settings are those of a `run.yaml` that a run wrote, in this version or an earlier one.

        Such a file contains every setting, including some that have no effect, or no longer have one.
        """
        return self.train.model_fields_set >= ALWAYS_WRITTEN

    @property
    def folder(self) -> Path:
        """The run folder of settings that name one."""
        assert self.output is not None
        return Path(self.output)

    @property
    def initial_weights(self) -> str:
        """What the model of resolved settings starts from: a checkpoint, the weights of its backbone, or "random"."""
        return self.weights or self.model["backbone_weights"] or "random"

    def flat(self, *, set_only: bool = False) -> dict[str, Any]:
        """Return all settings by dotted name, or only those that were set explicitly."""
        return flatten(self.model_dump(mode="json", exclude_unset=set_only))


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The settings of a run as they were given, before defaults and those of the recipe are filled in."""

    settings: RunSettings
    overrides: frozenset[str] = frozenset()
    """Dotted names of the settings on the command line, or given to `train` by name."""

    def written(self, *, resume: bool) -> frozenset[str]:
        """Return the names of the settings that the user wrote.

        The `run.yaml` of a run lists every setting, so it does not tell which of them were the user's.
        For a run that is resumed these are the overrides: the others were checked when it began.
        """
        if resume or self.settings.is_record:
            return self.overrides
        return frozenset(self.settings.flat(set_only=True))


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            flat[name] = value
    return flat
