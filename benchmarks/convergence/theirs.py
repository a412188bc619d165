"""transformers' models, trained on the batches that querybox's see, by the optimiser settings of their papers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.convergence.curves import Trained
from benchmarks.peers import transformers_targets
from benchmarks.small import Kind, transformers_small
from benchmarks.training import groups
from querybox.data import Batch, DetectionData, train_loader
from querybox.structures import Category, DetectorOutput, ImageBatch, Predictions, Preprocessing, Target
from querybox.training import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A model and how it is trained: AdamW at a constant learning rate, which the papers drop late."""

    title: str
    kind: Kind
    lr: float
    backbone_lr: float
    slow: tuple[str, ...] = ()
    """Layers that learn as slowly as the backbone."""
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
}


class PeerModel(nn.Module):
    """A model of transformers as `querybox.evaluate` wants it: an engine."""

    def __init__(
        self, kind: Kind, categories: tuple[Category, ...], short_side: int, long_side: int, **options: Any
    ) -> None:
        super().__init__()
        self.model = transformers_small(kind, len(categories), **options)
        self.no_object = kind == "detr"
        self.categories = categories
        self.class_rows = tuple(range(len(categories)))
        self.device = torch.device("cpu")
        backbone = self.model.model.backbone.model
        self.preprocessing = Preprocessing(
            mean=backbone.mean, std=backbone.std, short_side=short_side, long_side=long_side
        )

    def forward(self, batch: ImageBatch) -> DetectorOutput:
        """Detect objects."""
        found = self.model(pixel_values=batch.images, pixel_mask=(~batch.padding_mask).long())
        answer = Predictions(logits=found.logits, boxes=found.pred_boxes, no_object=self.no_object)
        return DetectorOutput(layers=(answer,))

    def loss(self, batch: ImageBatch, targets: Sequence[Target]) -> Tensor:
        """Return transformers' own loss."""
        loss: Tensor = self.model(
            pixel_values=batch.images,
            pixel_mask=(~batch.padding_mask).long(),
            labels=transformers_targets(targets),
        ).loss
        return loss


class Theirs:
    """A training of one of them."""

    def __init__(self, peer: Peer, run: RunSettings, training: DetectionData, **options: Any) -> None:
        """Set up a training with the data, batches and seed of `run`."""
        torch.manual_seed(run.train.seed)
        sizes = run.data.sizes()
        self.model = PeerModel(peer.kind, training.categories, sizes.short_side, sizes.long_side, **options)
        self.loader = train_loader(training, run.data, batch_size=run.train.batch_size, seed=run.train.seed)
        self.optimizer = torch.optim.AdamW(
            groups(self.model, ("backbone", *peer.slow), peer.backbone_lr),
            lr=peer.lr,
            weight_decay=peer.weight_decay,
            fused=True,  # the default of transformers' Trainer
        )
        self.clip = peer.clip
        self.batches = self.endless()
        self.seconds = 0.0
        self.steps = 0

    def train_until(self, seconds: float) -> Trained:
        """Go on until the steps have taken so long together."""
        self.model.train()
        started = time.perf_counter() - self.seconds
        while self.seconds <= seconds:
            self.step(next(self.batches))
            self.steps += 1
            self.seconds = time.perf_counter() - started
        return Trained(seconds=self.seconds, steps=self.steps, engine=self.model.eval())

    def step(self, batch: Batch) -> None:
        """Make one update."""
        images = ImageBatch.from_pixels(batch.pixels, batch.sizes, self.model.preprocessing)
        loss = self.model.loss(images, batch.targets)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    def endless(self) -> Iterator[Batch]:
        """Yield the batches of one epoch after another."""
        for epoch in itertools.count():
            self.loader.batch_sampler.set_epoch(epoch)
            yield from self.loader
