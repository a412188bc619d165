"""What a training run is made of, as values that a YAML file or the command line can set."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from querybox.data import DataSettings
from querybox.settings import Settings
from querybox.training.duration import Duration


class TrainSettings(Settings):
    """How the detector is trained.

    The defaults are those of DETR with the 150-epoch schedule; a run of another kind of model has its own, see
    `querybox.models.training_defaults`.
    """

    epochs: PositiveInt = 150
    batch_size: PositiveInt = 16
    """Images of one update, over all processes and all accumulated parts together."""
    accumulate: PositiveInt = 1
    """Parts in which the images of an update are worked one after the other, to fit into memory."""
    lr: PositiveFloat = 1e-4
    backbone_lr: PositiveFloat = 1e-5
    weight_decay: NonNegativeFloat = 1e-4
    clip: PositiveFloat | None = 0.1
    """Largest norm of the gradient of all parameters together; null leaves the gradient as it is."""
    schedule: Literal["step", "cosine"] = "step"
    """`step` multiplies the learning rates by 0.1 at each milestone, `cosine` brings them to 0 by the end of the run,
    be that its last epoch or its `max_time`."""
    milestones: tuple[PositiveInt, ...] | None = None
    """Epochs after which `step` decays; null means once, after two thirds of the epochs."""
    warmup_steps: NonNegativeInt = 0
    """Updates over which the learning rates rise linearly to their full value."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    """Compile the backbone with `torch.compile` at the first step, once for all image sizes; needs a C++ compiler."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights, e.g. 0.9997; the average is what is evaluated and saved."""
    freeze: tuple[str, ...] = ()
    """Parts that are not trained, by their dotted names: `backbone`, `encoder.layers.0`."""
    evaluate_every: PositiveInt = 1
    """Epochs from one evaluation to the next; there is always one at the end."""
    patience: PositiveInt | None = None
    """Stop after this many evaluations without a better AP."""
    max_time: Duration | None = None
    """Stop after this long, such as `30m` or `1h30m`, resumed parts included."""
    seed: NonNegativeInt = 0
    trackers: tuple[str, ...] = ()
    """Experiment trackers of accelerate, such as `tensorboard`."""

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse settings that do not fit each other."""
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided into accumulate = {self.accumulate} equal parts"
            )
        return self


class RunSettings(Settings):
    """Everything that a run can set; the resolved values are written to its folder as ``run.yaml``."""

    recipe: str | None = None
    """Name of the model, see `querybox.models`; null means that of the `weights`, or `detr_r50` without any."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Settings of the recipe that differ from its own."""
    data: DataSettings
    train: TrainSettings = TrainSettings()
    weights: str | None = None
    """A checkpoint of any layout whose weights the detector starts from: a file, a Hugging Face folder, or a name on
    the hub such as `hf://facebook/detr-resnet-50`."""
    output: str = "runs/detr"
    """The run folder."""

    def flat(self) -> dict[str, Any]:
        """Return every setting as a plain value by its dotted name."""
        flat: dict[str, Any] = {}
        for name, value in self.model_dump(mode="json").items():
            inner = (
                {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else None
            )
            flat |= {name: value} if inner is None else inner
        return flat
