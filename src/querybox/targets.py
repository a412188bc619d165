"""Checks of the targets of a batch, and their labels as rows of the class head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from querybox.arguments import require_type
from querybox.errors import ConfigError
from querybox.structures import Target


def check_targets(
    where: str, targets: Sequence[Target], *, images: int, classes: int, device: torch.device
) -> None:
    """Check that there is a `Target` for each image, on the device of the predictions, with labels of its classes.

    Labels on an accelerator are not read, because the host would have to wait for it; see `HungarianMatcher`.

    Args:
        where: What got the targets, for messages.
        targets: The targets.
        images: Number of images.
        classes: Number of classes, C.
        device: The device of the predictions.

    Raises:
        ConfigError: They are something else.
    """
    require_type(where, targets, Sequence, "a list with a Target for each image")
    for target in targets:
        require_type(where, target, Target, "a Target for each image")
    if len(targets) != images:
        raise ConfigError(f"{where} got {len(targets)} targets for {images} images; expected one for each")
    for target in targets:
        if target.labels.device != device:
            raise ConfigError(
                f"{where} got targets on {target.labels.device} and images on {device}; expected the same device: "
                "target.to(device)"
            )
    if device.type == "cpu":
        check_labels(where, targets, classes)


def check_masks(where: str, targets: Sequence[Target], sizes: Int[Tensor, "B 2"]) -> None:
    """Raise ConfigError unless masks have the (height, width) of their image in the batch, which is on the CPU."""
    for target, size in zip(targets, sizes, strict=True):
        if target.masks is None:
            continue
        got, expected = tuple(target.masks.shape[1:]), tuple(size.tolist())
        if got != expected:
            raise ConfigError(
                "{} got masks of {}x{} (height x width) for an image of {}x{}; expected the same size: resize them "
                "with their image".format(where, *got, *expected)
            )


def check_labels(where: str, targets: Sequence[Target], classes: int) -> None:
    """Raise ConfigError unless the labels of `targets`, which are on the CPU, are less than `classes`."""
    highest = max((int(target.labels.max()) for target in targets if len(target.labels)), default=0)
    if highest >= classes:
        raise ConfigError(
            f"{where} got the label {highest} for {classes} classes; expected labels from 0 to {classes - 1}: a label "
            "is an index into the classes, not the category id of a dataset"
        )


def on_class_rows(targets: Sequence[Target], class_rows: tuple[int, ...] | None) -> Sequence[Target]:
    """Return the targets with rows of the class head for labels, which differ if some rows belong to no class.

    Args:
        targets: With labels 0 ... C-1; the row of any other label is -1.
        class_rows: See `Predictions.class_rows`.
    """
    if class_rows is None or class_rows == tuple(range(len(class_rows))):
        return targets
    # non_blocking, so that the host does not wait for a GPU.
    device = targets[0].labels.device
    rows = torch.tensor([*class_rows, -1], device="cpu").to(device, non_blocking=True)
    return [replace(target, labels=rows[target.labels.clamp(-1, len(class_rows))]) for target in targets]
