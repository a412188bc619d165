"""One image followed through a detector."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from querybox.errors import ConfigError
from querybox.html import PICTURE_SIDE, jpeg_url, render
from querybox.inference.detections import Detections
from querybox.inference.engine import evaluating
from querybox.inference.predict import Input, as_detections, prepare
from querybox.inference.sources import Source, find_sources, read_frames
from querybox.inspect.attention import AttentionMaps, AttentionPoints, Look
from querybox.inspect.calls import now, recorded
from querybox.inspect.comparison import Comparison, compare
from querybox.inspect.stages import HEADS, Calls, Stage, comparison_stages, decoder_stages, encoder_stages
from querybox.modules.attention import Attention
from querybox.modules.deformable_attention import DeformableAttention
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category, ImageBatch, Preprocessing, Target

LAYERS = r"(?:encoder|decoder)\.layers\.\d+"
WATCHED = re.compile(
    rf"backbone|neck|encoder|encoder\.position|queries|{LAYERS}|{LAYERS}\.(?:self|cross)_attention"
    r"|decoder\.(?:class|box)_heads?(?:\.\d+)?"
)
"""The parts of a detector that stand for a stage, by name; not every detector has all of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """One image followed through a detector. L decoder layers, Q queries, C classes."""

    source: str
    """Where the image came from; ``""`` for pixels handed in."""
    pixels: UInt8[Tensor, "3 h w"]
    """What the detector was shown: the image, resized."""
    size: tuple[int, int]
    """(height, width) of the original image in pixels."""
    categories: tuple[Category, ...]
    """The classes, by label."""
    grids: tuple[tuple[int, int], ...]
    """(height, width) in cells of each feature map; their cells lie one after the other in the memory."""
    stages: tuple[Stage, ...]
    """In order."""
    scores: Float[Tensor, "L Q C"]
    """How likely each class was to each layer, 0-1."""
    no_object_scores: Float[Tensor, "L Q"] | None
    """How likely "no object" was, 0-1; None: this model judges each class alone."""
    boxes: Float[Tensor, "L Q 4"]
    """Each layer's boxes: cxcywh in 0-1 of the image."""
    detections: Detections
    """The answer, whatever it scores: as many as there are queries."""
    encoder_attention: tuple[Look, ...]
    """From cell to cell, by layer."""
    decoder_self_attention: tuple[Look, ...]
    """From query to query, by layer."""
    decoder_cross_attention: tuple[Look, ...]
    """From query to cell, by layer."""
    comparison: Comparison | None
    """The answers held against the objects, where these are known."""

    @property
    def ranking(self) -> list[int]:
        """The queries, that with the highest score of the last layer first."""
        return self.scores[-1].amax(1).argsort(descending=True, stable=True).tolist()

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain values, such as JSON can say; stages are described, not quoted."""
        scores, labels = self.scores.max(-1)
        layers = zip(labels.tolist(), scores.tolist(), self.boxes.tolist(), strict=True)
        return {
            "source": self.source,
            "size": list(self.size),
            "classes": [category.name for category in self.categories],
            "stages": [
                {
                    "number": stage.number,
                    "name": stage.name,
                    "shape": list(stage.shape),
                    "dtype": stage.dtype,
                    "range": stage.range,
                    "seconds": stage.seconds,
                }
                for stage in self.stages
            ],
            "layers": [{"labels": a, "scores": b, "boxes": c} for a, b, c in layers],
            "comparison": comparison_dict(self.comparison) if self.comparison else None,
        }

    def _repr_html_(self) -> str:
        """Show the trace in Jupyter: what was found, every stage, and the losses."""
        found = self.detections.above(0.5)
        captions = [
            f"{name} {score:.2f}" for name, score in zip(found.names, found.scores.tolist(), strict=True)
        ]
        losses = self.comparison.losses if self.comparison else {}
        return render(
            "notebook/trace.html",
            trace=self,
            boxes=found.boxes_xyxy.tolist(),
            captions=captions,
            url=jpeg_url(Image.fromarray(self.pixels.permute(1, 2, 0).numpy()), PICTURE_SIDE),
            heads=HEADS,
            rows=[stage.row() for stage in self.stages],
            losses={name: f"{loss:.6g}" for name, loss in losses.items()},
        )


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain values."""
    return {
        "labels": comparison.target.labels.tolist(),
        "boxes": comparison.target.boxes.tolist(),
        "terms": {name: values.tolist() for name, values in comparison.terms.items()},
        "cost": comparison.cost.tolist(),
        "matched": comparison.matched.tolist(),
        "losses": dict(comparison.losses),
    }


@torch.no_grad()
def trace(detector: DetectionTransformer, image: Source | ImageBatch, target: Target | None = None) -> Trace:
    """Follow one image through a detector; see `Detector.trace`."""
    start = now(detector.device)
    given, batch = read_one(image, detector)
    preparing = now(detector.device) - start
    watched = {name: part for name, part in detector.named_modules() if WATCHED.fullmatch(name)}
    with evaluating(detector), recorded(watched, detector.device) as calls:
        output = detector(batch)
    comparison = None if target is None else compare(detector, output, target)
    boxes = torch.stack([layer.boxes[0].float() for layer in output.layers]).cpu()  # [L, Q, 4]
    start = now(detector.device)
    (detections,) = as_detections(detector, output.layers[-1], [given], boxes.shape[1])
    answering = now(detector.device) - start
    no_object = [layer.no_object_scores() for layer in output.layers]
    return Trace(
        source=given.source,
        pixels=given.pixels,
        size=given.size,
        categories=detector.categories,
        grids=tuple((feature.shape[2], feature.shape[3]) for feature in calls["neck"][0].output),
        stages=(
            Stage(number=0, name="images", value=batch.images, seconds=preparing),
            *encoder_stages(calls, batch),
            *decoder_stages(calls, output),
            *(comparison_stages(comparison, boxes.shape[1]) if comparison else ()),
            Stage(number=12, name="scores", value=detections.scores, seconds=answering),
            Stage(number=12, name="labels", value=detections.labels),
            Stage(number=12, name="boxes in pixels", value=detections.boxes_xyxy),
        ),
        scores=torch.stack([layer.scores()[0] for layer in output.layers]).cpu(),
        no_object_scores=torch.cat([each for each in no_object if each is not None]).cpu()
        if output.layers[0].no_object
        else None,
        boxes=boxes,
        detections=detections,
        encoder_attention=looks(watched, calls, "encoder.layers.{}.self_attention"),
        decoder_self_attention=looks(watched, calls, "decoder.layers.{}.self_attention"),
        decoder_cross_attention=looks(watched, calls, "decoder.layers.{}.cross_attention"),
        comparison=comparison,
    )


def read_one(image: Source | ImageBatch, detector: DetectionTransformer) -> tuple[Input, ImageBatch]:
    """Return the image, resized, and as the detector takes it.

    Raises:
        ConfigError: It is not one image.
        DataError: There is no such file.
        ImageError: It cannot be read.
    """
    look = detector.preprocessing
    if isinstance(image, ImageBatch):
        if len(image.images) != 1:
            raise ConfigError(f"trace got a batch of {len(image.images)} images; expected one")
        return unprepared(image, look), image
    sources = find_sources(image)
    inputs = list(islice(prepare(read_frames(sources[:1]), look), 2))
    if len(sources) != 1 or len(inputs) != 1:
        raise ConfigError(f"trace got {image}, which is more than one picture; expected one image")
    return inputs[0], ImageBatch.from_images([inputs[0].pixels], look, detector.device)


def unprepared(batch: ImageBatch, look: Preprocessing) -> Input:
    """Return the image that was normalised and padded to this batch of one."""
    height, width = batch.sizes[0].tolist()
    mean, std = (
        torch.tensor(values, device=batch.images.device)[:, None, None] for values in (look.mean, look.std)
    )
    pixels = (batch.images[0, :, :height, :width] * std + mean).round().clamp(0, 255).to("cpu", torch.uint8)
    return Input(position=0, source="", size=(height, width), pixels=pixels)


def looks(parts: Mapping[str, nn.Module], calls: Calls, pattern: str) -> tuple[Look, ...]:
    """Return where each layer looked, in order; nothing for attention of a kind that is not known here."""
    names = [name for layer in range(len(calls)) if (name := pattern.format(layer)) in calls]
    found: list[Look] = []
    for name in names:
        part, call = parts[name], calls[name][-1]
        if isinstance(part, Attention):
            found.append(AttentionMaps.of(part, call))
        elif isinstance(part, DeformableAttention):
            found.append(AttentionPoints.of(part, call))
    return tuple(found)
