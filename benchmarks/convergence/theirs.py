"""transformers' models, trained on the same batches as querybox's, with the optimiser settings of their papers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.convergence.curves import Watch
from benchmarks.peers import transformers_targets
from benchmarks.small import HYBRID, Kind, transformers_small
from benchmarks.training import groups
from querybox.data import Batch, DetectionData, train_loader
from querybox.data.loader import TrainLoader
from querybox.structures import Category, DetectorOutput, ImageBatch, Predictions, Preprocessing, Target
from querybox.training import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A model and its training settings: AdamW with a constant learning rate, which the papers lower only late."""

    title: str
    kind: Kind
    lr: float
    backbone_lr: float
    slow: tuple[str, ...] = ()
    """Layers trained with the backbone's learning rate."""
    weight_decay: float = 1e-4
    clip: float = 0.1


THEIRS = {
    "transformers_detr": Peer(title="transformers DETR", kind="detr", lr=1e-4, backbone_lr=1e-5),
    "transformers_deformable_detr": Peer(
        title="transformers Deformable DETR",
        kind="deformable_detr",
        lr=2e-4,
        backbone_lr=2e-5,
        slow=("sampling_offsets", "reference_points"),
    ),
    "transformers_rtdetr": Peer(title="transformers RT-DETR", kind="rtdetr", lr=1e-4, backbone_lr=1e-5),
    "transformers_dfine": Peer(title="transformers D-FINE", kind="dfine", lr=2e-4, backbone_lr=1e-4),
}


class PeerModel(nn.Module):
    """A model of transformers as an `Engine`, which `querybox.evaluate` accepts."""

    def __init__(
        self, kind: Kind, categories: tuple[Category, ...], short_side: int, long_side: int, **options: Any
    ) -> None:
        super().__init__()
        self.model = transformers_small(kind, len(categories), **options)
        self.no_object = kind == "detr"
        self.categories = categories
        self.device = torch.device("cpu")
        backbone = self.model.model.backbone.model
        self.preprocessing = Preprocessing(
            mean=backbone.mean, std=backbone.std, short_side=short_side, long_side=long_side
        )

    def forward(self, batch: ImageBatch) -> DetectorOutput:
        """Detect objects."""
        outputs = self.model(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
        predictions = Predictions(logits=outputs.logits, boxes=outputs.pred_boxes, no_object=self.no_object)
        return DetectorOutput(layers=(predictions,))

    def loss(self, batch: ImageBatch, targets: Sequence[Target]) -> Tensor:
        """Return transformers' own loss."""
        loss: Tensor = self.model(
            pixel_values=batch.images,
            pixel_mask=(~batch.padding_mask).long(),
            labels=transformers_targets(targets),
        ).loss
        return loss


class HybridPeer(PeerModel):
    """RT-DETR or D-FINE of transformers.

    They have no padding mask: their boxes are relative to the padded image, whose sides must be multiples of 32.
    """

    def forward(self, batch: ImageBatch) -> DetectorOutput:
        """Detect objects."""
        images = pad(batch.images)
        outputs = self.model(pixel_values=images)
        boxes = outputs.pred_boxes / fractions(batch.sizes, images)[:, None]
        predictions = Predictions(logits=outputs.logits, boxes=boxes, no_object=False)
        return DetectorOutput(layers=(predictions,))

    def loss(self, batch: ImageBatch, targets: Sequence[Target]) -> Tensor:
        """Return transformers' own loss."""
        images = pad(batch.images)
        pairs = zip(targets, fractions(batch.sizes, images), strict=True)
        relative = [Target(boxes=target.boxes * fraction, labels=target.labels) for target, fraction in pairs]
        loss: Tensor = self.model(pixel_values=images, labels=transformers_targets(relative)).loss
        return loss


def pad(images: Tensor) -> Tensor:
    """Return images with sides that are multiples of 32."""
    height, width = images.shape[-2:]
    return nn.functional.pad(images, (0, -width % 32, 0, -height % 32))


def fractions(sizes: Tensor, images: Tensor) -> Tensor:
    """Return which part of the padded images each image is, as (width, height, width, height)."""
    height, width = images.shape[-2:]
    return (sizes / sizes.new_tensor([height, width])).flip(-1).repeat(1, 2)


def peer_model(kind: Kind, *arguments: Any, **options: Any) -> PeerModel:
    """Return a model of transformers; the arguments are those of `PeerModel`."""
    return (HybridPeer if kind in HYBRID else PeerModel)(kind, *arguments, **options)


def train_theirs(peer: Peer, run: RunSettings, training: DetectionData, watch: Watch, **options: Any) -> None:
    """Train one of transformers' models with the data, batches, seed and time limit of `run`.

    Args:
        peer: The model.
        run: Settings; only those that all models share are used.
        training: The data.
        watch: Called after every step.
        options: Options of `transformers_small`.
    """
    torch.manual_seed(run.train.seed)
    sizes = run.data.sizes()
    model = peer_model(peer.kind, training.categories, sizes.short_side, sizes.long_side, **options).train()
    loader = train_loader(training, run.data, batch_size=run.train.batch_size, seed=run.train.seed)
    optimizer = torch.optim.AdamW(
        groups(model, ("backbone", *peer.slow), peer.backbone_lr),
        lr=peer.lr,
        weight_decay=peer.weight_decay,
        fused=True,  # the default of transformers' Trainer
    )
    assert run.train.max_time is not None
    started = time.perf_counter()
    for step, batch in enumerate(endless(loader), start=1):
        images = ImageBatch.from_pixels(batch.pixels, batch.sizes, model.preprocessing)
        loss = model.loss(images, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), peer.clip)
        optimizer.step()
        seconds = time.perf_counter() - started
        started += watch.evaluate_if_due(seconds, step, model)
        if seconds > run.train.max_time:
            break


def endless(loader: TrainLoader) -> Iterator[Batch]:
    """Yield the batches of successive epochs, endlessly."""
    for epoch in itertools.count():
        loader.batch_sampler.set_epoch(epoch)
        yield from loader
