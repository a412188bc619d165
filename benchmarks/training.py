"""A training step: forward pass, losses, backward pass, gradient clipping, AdamW."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.goals import faster
from benchmarks.measure import Row, Side, Work
from benchmarks.processes import in_separate_processes
from benchmarks.setup import EXAMPLE, Setup, detector, images, pixels, targets
from querybox.data import Batch, DetectionData, read_dataset, train_loader
from querybox.detector import Detector
from querybox.fast.memory import retain_freed_memory
from querybox.interrupt import StopRequest
from querybox.losses.criterion import Criterion
from querybox.structures import ImageBatch
from querybox.training.loop import Trainer
from querybox.training.processes import start_processes
from querybox.training.settings import RunSettings, TrainSettings

FULL, BEST = "querybox float32", "querybox bf16"
BATCH, SIZE, OBJECTS = 2, (512, 640), 7


def rows(setup: Setup) -> Iterator[Row]:
    """Yield the row, with one process per side, because keeping freed memory affects the whole process."""
    yield in_separate_processes(row(setup))


def row(setup: Setup) -> Row:
    """Return the row.

    Each side runs first without dropout, to compare results, and is then timed with dropout.
    """
    return Row(
        name="training",
        title=f"Training step, {BATCH} images of {SIZE[0]}x{SIZE[1]} with {OBJECTS} objects",
        sides=[
            Side(name=FULL, build=partial(ours, setup, "float32"), within=retain_freed_memory),
            Side(
                name=BEST,
                build=partial(ours, setup, "bf16"),
                tolerance=0.05,
                within=retain_freed_memory,
                precision="bf16",
            ),
            Side(name=peers.FACEBOOK, build=partial(facebook, setup), tolerance=1e-3),
            Side(name=peers.TRANSFORMERS, build=partial(transformers, setup), tolerance=1e-3),
            Side(
                name=f"{peers.TRANSFORMERS} bf16",
                build=partial(transformers, setup, bf16=True),
                tolerance=0.05,
                precision="bf16",
            ),
        ],
        difference=relative,
        goals=[
            faster([FULL], peers.FACEBOOK, 1.4),
            faster([FULL, BEST], peers.FACEBOOK, 2.8),
            faster([FULL], peers.TRANSFORMERS, 1.8),
            faster([FULL, BEST], peers.TRANSFORMERS, 4.0),
        ],
        seconds=setup.seconds(60),
    )


def relative(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the largest relative difference of the loss and the gradient norm."""
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


def ours(setup: Setup, precision: Any) -> Work:
    """Return one update of querybox's training loop."""
    content, sizes = pixels(BATCH, setup.size(*SIZE))
    batch = Batch(pixels=content, sizes=sizes, targets=tuple(targets(BATCH, OBJECTS)), image_ids=(1, 2))
    return update(setup, copy.deepcopy(detector()), Criterion(), batch, precision)


def update(setup: Setup, model: Detector, criterion: Criterion, batch: Batch, precision: Any) -> Work:
    """Return an update of `model` by querybox's training loop, without dropout at the first call and with it later.

    The loss in its result leaves out denoising queries, which are random.
    """
    settings = TrainSettings(batch_size=len(batch.image_ids), precision=precision)
    run = RunSettings.parse({"data": {"train": "none", "workers": 0}, "output": str(setup.folder)}).replace(
        train=settings
    )
    loader = train_loader(training_data(), run.data, batch_size=len(batch.image_ids), seed=0)
    trainer = Trainer(model, criterion, loader, run, accelerator=start_processes(run))
    trainer.model.eval()

    def work() -> tuple[float, float]:
        done = trainer.update([batch], StopRequest())
        trainer.model.train()
        return sum(loss for name, loss in done.losses.items() if "dn_" not in name), done.grad_norm

    return work


@cache
def training_data() -> DetectionData:
    """Return the data that a loop needs; they are not iterated over, because the batch is always the same."""
    return read_dataset(EXAMPLE, "train")


def facebook(setup: Setup) -> Work:
    """Return the step of facebookresearch's engine.py and main.py."""
    model, criterion = peers.facebook(setup.facebook, detector())
    batch, wanted = inputs(setup)
    nested = peers.nested(batch)
    theirs = peers.facebook_targets(wanted)

    def loss() -> Tensor:
        losses = criterion(model(nested), theirs)
        weights = criterion.weight_dict
        return sum(losses[key] * weights[key] for key in losses if key in weights)

    return step(model, loss, torch.optim.AdamW(groups(model), lr=1e-4, weight_decay=1e-4))


def transformers(setup: Setup, *, bf16: bool = False) -> Work:
    """Return the same step, with the fused AdamW that is the default of transformers' Trainer."""
    model = peers.transformers(detector())
    for name, parameter in model.model.backbone.model.named_parameters():
        # As published and in the other sides; with timm's backbone transformers trains all layers.
        parameter.requires_grad_(any(layer in name for layer in ("layer2", "layer3", "layer4")))
    batch, wanted = inputs(setup)
    mask = (~batch.padding_mask).long()
    theirs = peers.transformers_targets(wanted)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(pixel_values=batch.images, pixel_mask=mask, labels=theirs).loss

    return step(model, loss, torch.optim.AdamW(groups(model), lr=1e-4, weight_decay=1e-4, fused=True))


def inputs(setup: Setup) -> tuple[ImageBatch, list[Any]]:
    """Return the images and targets of a step."""
    return images(BATCH, setup.size(*SIZE)), targets(BATCH, OBJECTS)


def groups(model: Any, slow: Sequence[str] = ("backbone",), slow_lr: float = 1e-5) -> list[dict[str, Any]]:
    """Return parameter groups; parameters whose names contain one of `slow` get the learning rate `slow_lr`."""

    def chosen(*, slowly: bool) -> list[Any]:
        return [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and any(part in name for part in slow) == slowly
        ]

    return [{"params": chosen(slowly=False)}, {"params": chosen(slowly=True), "lr": slow_lr}]


def step(model: Any, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Work:
    """Return a training step of another implementation, without dropout at the first call and with it later."""
    model.eval()

    def work() -> tuple[float, float]:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        model.train()
        return value.item(), norm.item()

    return work
