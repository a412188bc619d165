"""How often a training step waits for the device: no more for eight images than for two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny_models import HYBRID
from torch import Tensor
from torch.overrides import TorchFunctionMode

from querybox import targets
from querybox.data import train_loader
from querybox.interrupt import StopRequest
from querybox.structures import Target
from querybox.training import RunSettings
from querybox.training.data import check_splits, read_splits
from querybox.training.loop import Trainer
from querybox.training.processes import start_processes
from querybox.training.start import build_detector, resolve

READS = {
    *("cpu", "item", "tolist", "equal", "nonzero", "masked_select", "unique", "is_nonzero"),
    *("__bool__", "__int__", "__float__", "__index__", "__contains__"),
}


class Waits(TorchFunctionMode):
    """Counts what would make a program wait for its GPU, also where there is none.

    These are: values of a tensor that are read; indexing with a mask, for then a size depends on values; and values
    of the host that are brought to the device at once: by `torch.tensor`, `new_tensor` and lists as indices, and where
    a number becomes an element of a tensor, but not a slice. On a CPU nobody can tell which way `to` copies, so it
    counts only where it says "cpu".
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in READS or name in ("tensor", "new_tensor"):
            self.calls[name] += 1
        elif name == "to":
            self.calls["to"] += "cpu" in [each for each in args[1:] if isinstance(each, str)]
        elif name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            masks = [each for each in index if isinstance(each, Tensor) and each.dtype == torch.bool]
            self.calls["mask"] += bool(masks)
            self.calls["list"] += any(isinstance(each, list) for each in index)
            places = sum(isinstance(each, int) for each in index)
            is_number = name == "__setitem__" and isinstance(args[2], int | float)
            self.calls["element"] += is_number and places == args[0].dim()
        return func(*args, **kwargs)


def waits_of_a_step(settings: RunSettings, folder: Path) -> dict[str, int]:
    """Make the first update of a run; its batch has been loaded already."""
    settings = resolve(settings)
    accelerator = start_processes(settings)
    splits = read_splits(settings, resume=False)
    data = check_splits(splits, settings, accelerator, resume=False).training
    detector = build_detector(settings, data.categories)
    assert detector.recipe is not None
    trainer = Trainer(
        detector,
        detector.recipe.criterion(),
        train_loader(data, settings.data, batch_size=settings.train.batch_size, seed=0),
        settings.replace(output=str(folder)),
        accelerator=accelerator,
    )
    parts = next(trainer.remaining_batches())
    # Values are checked where they are on the host already, which they are not on a GPU.
    unchecked = patch.object(Target, "__post_init__"), patch.object(targets, "check_labels")
    with unchecked[0], unchecked[1], Waits() as waits:
        trainer.update(parts, StopRequest())
    return {name: count for name, count in waits.calls.items() if count}


RELATIVE = {"levels": 3, "points": 2}
COMMON = {"cpu": 1, "tolist": 1, "tensor": 3}
"""The costs go to the matcher, which solves on the host. The step's numbers are read, for nothing may be updated before
they are known to be finite. Constants come from the host: mean and deviation of the pixels, this process's state."""


@pytest.mark.parametrize(
    ("recipe", "model", "more"),
    [
        (
            "detr_r50",
            {"unused_rows": [0]},
            {"tensor": 2},
        ),  # the rows of the classes, for matching and for losses
        ("deformable_detr_r50_refine", RELATIVE, {"tensor": 1}),  # the sizes of the maps
        # The proposals are matched, too, and the host says where the denoising queries' objects go.
        ("dino_r50", {**RELATIVE, "denoising": 4}, {"cpu": 1, "tensor": 2}),
        # Three matchings; of their union, on the host, sizes depend on values.
        ("dfine_n", HYBRID, {"cpu": 3, "unique": 1, "mask": 1, "tensor": 2}),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_a_step_waits_no_more_for_more_images(
    recipe: str,
    model: dict[str, Any],
    more: dict[str, int],
    run_settings: Callable[..., RunSettings],
    tmp_path: Path,
) -> None:
    settings = run_settings(model={"width": 32, **model}).replace(recipe=recipe)
    for batch_size in (2, 8):
        train = settings.train.replace(batch_size=batch_size)
        waits = waits_of_a_step(settings.replace(train=train), tmp_path)
        assert waits == dict(Counter(COMMON) + Counter(more))


def test_waiting_is_noticed() -> None:
    numbers = torch.arange(3.0)
    with Waits() as waits:
        assert numbers.sum() > 0
        numbers[numbers > 1] = 0
        numbers[1:] = numbers[[1, 0]]
        numbers[-1] = numbers[:1] = 0
        numbers.new_tensor([2])
        numbers.to(numbers.device).to(torch.float64).to("cpu")
        torch.tensor([1.0])
    noticed = {"__bool__": 1, "mask": 1, "list": 1, "element": 1, "new_tensor": 1, "to": 1, "tensor": 1}
    assert waits.calls == noticed
