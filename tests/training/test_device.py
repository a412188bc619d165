"""What a GPU has to do as the CPU does: outputs, losses, gradients, resumed runs; and how often it is waited for.

Without a GPU these tests run on the CPU. The reference is always the plain detector on the CPU in float64.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TINY
from torch import Tensor

from querybox.data import Batch, read_dataset, train_loader
from querybox.detector import Detector
from querybox.inference.engine import default_device
from querybox.interrupt import StopRequest
from querybox.losses.criterion import Criterion
from querybox.pixels import pad
from querybox.precision import ComputedPrecision
from querybox.structures import ImageBatch, Target
from querybox.training import RunSettings, loop, train
from querybox.training.loop import Trainer
from querybox.training.processes import start_processes

pytestmark = pytest.mark.device

MakeSettings = Callable[..., RunSettings]
DEVICE = default_device()
MODELS = ("detr_r50", "deformable_detr_r50_refine", "dino_r50")
OUTPUT_TOLERANCE: dict[ComputedPrecision, float] = {"float32": 1e-5, "bf16": 3e-2, "fp16": 4e-3}
"""Largest norm of the error of logits and boxes, relative to the norm of the reference."""
LOSS_TOLERANCE = {"float32": 1e-5, "bf16": 2e-2, "fp16": 5e-3}
"""Largest relative error of a loss, by `train.precision`."""
GRADIENT_TOLERANCE = {"float32": 1e-4, "bf16": 0.1, "fp16": 2e-2}
"""Largest relative error of the norm of the gradient."""
SYNCHRONISATIONS = {"detr_r50": 2, "deformable_detr_r50_refine": 2, "dino_r50": 3}
"""Times that an update waits for the GPU: for the costs of the matching, which two-stage models do once more for the
encoder's proposals, and for the numbers that say whether the update is finite."""

needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
PRECISIONS = [
    pytest.param(precision, marks=needs_gpu if precision == "fp16" else ())
    for precision in get_args(ComputedPrecision)
]


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Compute float32 without TF32, which has 10 bits, and the same way each time."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*deterministic")
        yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def detector(recipe: str) -> Detector:
    """Return a tiny detector whose fresh weights are noisy, or all of its boxes would be the same."""
    torch.manual_seed(0)
    found = Detector.from_recipe(recipe, num_classes=3, dropout=0.0, **TINY)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found.eval()


def training_batch() -> Batch:
    """Return two images of different sizes with objects."""
    generator = torch.Generator().manual_seed(0)
    pixels, sizes = pad(
        [
            torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator)
            for size in ((64, 96), (96, 64))
        ]
    )
    targets = (
        Target(boxes=torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.5, 0.3, 0.3]]), labels=torch.tensor([0, 2])),
        Target(boxes=torch.tensor([[0.5, 0.5, 0.4, 0.6]]), labels=torch.tensor([1])),
    )
    batch = Batch(pixels=pixels, sizes=sizes, targets=targets, image_ids=(1, 2))
    return batch.pin_memory() if DEVICE.type == "cuda" else batch


def images(model: Detector) -> ImageBatch:
    """Return the images of the batch, normalised, on the device of `model`."""
    batch = training_batch()
    pixels, sizes = batch.pixels.to(model.device), batch.sizes.to(model.device)
    return ImageBatch.from_pixels(pixels, sizes, model.preprocessing)


def in_float64(model: Detector) -> tuple[Detector, ImageBatch]:
    """Return the reference and its input."""
    batch = images(model)
    return copy.deepcopy(model).double(), replace(batch, images=batch.images.double())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the error over the norm of what was expected."""
    return float((found.cpu().double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", [None, *get_args(ComputedPrecision)])
@pytest.mark.parametrize("recipe", MODELS)
@torch.no_grad()
def test_outputs(recipe: str, precision: ComputedPrecision | None) -> None:
    """The optimised copy in each precision, and the plain detector (None)."""
    if recipe == "dino_r50" and precision in ("bf16", "fp16"):
        pytest.skip(
            "the choice of proposals may differ: in reduced precision their scores are equal more often"
        )
    model = detector(recipe)
    plain, batch = in_float64(model)
    expected = plain(batch).layers[-1]
    model.to(DEVICE)
    run = model if precision is None else model.optimize(precision=precision)
    found = run(images(model)).layers[-1]
    assert found.logits.device.type == DEVICE.type
    tolerance = OUTPUT_TOLERANCE[precision or "float32"]
    assert relative_error(found.logits, expected.logits) < tolerance
    assert relative_error(found.boxes, expected.boxes) < tolerance


def trainer(model: Detector, criterion: Criterion, settings: RunSettings) -> Trainer:
    """Return what trains `model` on the device."""
    data = read_dataset(str(settings.data.train))
    loader = train_loader(data, settings.data, batch_size=settings.train.batch_size, seed=0)
    return Trainer(model, criterion, loader, settings, accelerator=start_processes(settings))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("recipe", MODELS[:2])  # denoising draws random numbers, which differ between devices
def test_losses_and_gradient(recipe: str, precision: str, run_settings: MakeSettings) -> None:
    model = detector(recipe)
    assert model.recipe is not None
    criterion = model.recipe.criterion()
    batch = training_batch()
    plain, normalised = in_float64(model)
    expected = criterion(plain(normalised), batch.targets)
    sum(expected.values()).backward()
    gradients = [parameter.grad for parameter in plain.parameters() if parameter.grad is not None]
    norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())

    training = trainer(model, criterion, run_settings(precision=precision))
    assert training.detector.device.type == DEVICE.type
    for _ in range(20):  # in fp16 steps are skipped until the scaler has found a scale without overflow
        update = training.update([batch], StopRequest())
        if math.isfinite(update.grad_norm):
            break
    tolerance = LOSS_TOLERANCE[precision]
    assert update.losses == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=tolerance
    )
    assert update.grad_norm == pytest.approx(norm, rel=GRADIENT_TOLERANCE[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("without_shape_checks")
def test_resumed_runs(precision: str, run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted has the very weights of one that was not."""
    whole = train(run_settings("whole", epochs=3, precision=precision, ema=0.9)).run_dir
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_SECONDS", 0.0)
    settings = run_settings("parts", epochs=3, precision=precision, ema=0.9)
    end_epoch, ends = Trainer.end_epoch, []

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        ends.append(self.progress.epoch)
        if len(ends) == 2:
            raise KeyboardInterrupt
        return end_epoch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    parts = train(settings, resume=True).run_dir
    for name in ("checkpoint", "last"):
        found, expected = (load_file(Path(run) / f"{name}.safetensors") for run in (parts, whole))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@needs_gpu
@pytest.mark.parametrize(
    "precision", ["float32", "bf16"]
)  # with fp16 the scaler waits for the device as well
@pytest.mark.parametrize("recipe", MODELS)
def test_synchronisations(recipe: str, precision: str, run_settings: MakeSettings) -> None:
    model = detector(recipe)
    assert model.recipe is not None
    training = trainer(model, model.recipe.criterion(), run_settings(precision=precision, ema=0.9))
    batch = training_batch()
    for _ in range(2):  # the first update allocates the optimiser's state
        training.update([batch], StopRequest())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        training.update([batch], StopRequest())
        torch.cuda.set_sync_debug_mode("default")
    found = [
        f"{each.filename}:{each.lineno}" for each in caught if "called a synchronizing" in str(each.message)
    ]
    assert len(found) == SYNCHRONISATIONS[recipe], found
