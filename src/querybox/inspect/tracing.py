"""Traces: all stages of a detector for one image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from querybox.arguments import require_type
from querybox.edges import Edges
from querybox.errors import ConfigError
from querybox.html import PICTURE_SIDE, jpeg_url, render
from querybox.inference.detections import Detections
from querybox.inference.engine import evaluating
from querybox.inference.predict import Input, prepare, to_detections
from querybox.inference.sources import Source, find_sources, read_frames
from querybox.inspect.attention import AttentionMaps, AttentionPoints, LayerAttention
from querybox.inspect.calls import now, recorded
from querybox.inspect.comparison import Comparison, compare
from querybox.inspect.masks import QueryMasks
from querybox.inspect.stages import HEADS, Calls, Stage, comparison_stages, decoder_stages, encoder_stages
from querybox.modules.attention import Attention
from querybox.modules.deformable_attention import DeformableAttention
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Category, ImageBatch, Preprocessing, Target
from querybox.text import counted

LAYERS = r"(?:encoder|decoder)\.layers\.\d+"
RECORDED = re.compile(
    rf"backbone|neck|encoder|encoder\.position|queries|{LAYERS}|{LAYERS}\.(?:self|cross)_attention"
    r"|decoder\.(?:class|box)_heads?(?:\.\d+)?"
)
"""Names of the modules that make up the stages; a detector need not have all of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """All stages of a detector for one image. L decoder layers, Q queries, C classes."""

    source: str
    """Where the image came from; ``""`` for pixels."""
    pixels: UInt8[Tensor, "3 h w"]
    """The resized image, as the detector sees it."""
    size: tuple[int, int]
    """(height, width) of the original image in pixels."""
    categories: tuple[Category, ...]
    """The classes, by label."""
    grids: tuple[tuple[int, int], ...]
    """(height, width) in cells of each feature map; the memory concatenates their cells."""
    stages: tuple[Stage, ...]
    """Outputs of the stages, in the order of computation."""
    scores: Float[Tensor, "L Q C"]
    """Class scores of each layer, 0-1."""
    no_object_scores: Float[Tensor, "L Q"] | None
    """Probability of "no object", 0-1; None if the classes are scored independently, with a sigmoid."""
    boxes: Float[Tensor, "L Q 4"]
    """Boxes of each layer: cxcywh in 0-1 of the image."""
    edge_deviations: Float[Tensor, "L Q 4"] | None
    """Standard deviation of the left, top, right and bottom edge of each box, in 0-1 of the image: how uncertain its
    place is; None if boxes are not means of distributions (D-FINE)."""
    masks: QueryMasks | None
    """Masks of each query by layer; None without a mask head."""
    detections: Detections
    """The detections, one for each query, whatever its score."""
    encoder_attention: tuple[LayerAttention, ...]
    """Self-attention of the cells, by layer."""
    decoder_self_attention: tuple[LayerAttention, ...]
    """Self-attention of the queries, by layer."""
    decoder_cross_attention: tuple[LayerAttention, ...]
    """Cross-attention from queries to cells, by layer."""
    comparison: Comparison | None
    """The predictions compared with the objects; None if no target was given."""

    @property
    def ranking(self) -> list[int]:
        """The queries by their score in the last layer, highest first."""
        return self.scores[-1].amax(1).argsort(descending=True, stable=True).tolist()

    def __repr__(self) -> str:
        """Return, for example, ``Trace('a.jpg', 21 stages, 100 queries in 3 layers)``; `stages` has their shapes."""
        layers, queries, _ = self.scores.shape
        counts = counted(len(self.stages), "stage"), counted(queries, "query", "queries")
        source = f"{self.source!r}, " if self.source else ""
        return f"Trace({source}{', '.join(counts)} in {counted(layers, 'layer')})"

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain values for JSON; stages are summarised, without their tensors."""
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
            "edge_deviations": None if self.edge_deviations is None else self.edge_deviations.tolist(),
            "comparison": comparison_dict(self.comparison) if self.comparison else None,
        }

    def _repr_html_(self) -> str:
        """Show the detections, every stage and the losses in Jupyter."""
        shown = self.detections.above(0.5)
        captions = [
            f"{name} {score:.2f}" for name, score in zip(shown.names, shown.scores.tolist(), strict=True)
        ]
        losses = self.comparison.losses if self.comparison else {}
        return render(
            "notebook/trace.html",
            trace=self,
            boxes=shown.boxes_xyxy.tolist(),
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
    """Trace one image through a detector; see `Detector.trace`."""
    if target is not None:
        require_type("trace", target, Target, "a Target: the objects of the image")
    start = now(detector.device)
    given, batch = read_one(image, detector)
    preparation_seconds = now(detector.device) - start
    modules = {name: module for name, module in detector.named_modules() if RECORDED.fullmatch(name)}
    with evaluating(detector), recorded(modules, detector.device) as calls:
        output = detector(batch)
    comparison = None if target is None else compare(detector, output, target)
    boxes = torch.stack([layer.boxes[0].float() for layer in output.layers]).cpu()  # [L, Q, 4]
    start = now(detector.device)
    (detections,) = to_detections(detector, output.layers[-1], [given], boxes.shape[1])
    postprocessing_seconds = now(detector.device) - start
    no_object = [each for layer in output.layers if (each := layer.no_object_scores()) is not None]
    return Trace(
        source=given.source,
        pixels=given.pixels,
        size=given.size,
        categories=detector.categories,
        grids=tuple((feature.shape[2], feature.shape[3]) for feature in calls["neck"][0].output),
        stages=(
            Stage(number=0, name="images", value=batch.images, seconds=preparation_seconds),
            *encoder_stages(calls, batch),
            *decoder_stages(calls, output),
            *(comparison_stages(comparison, boxes.shape[1]) if comparison else ()),
            Stage(number=12, name="scores", value=detections.scores, seconds=postprocessing_seconds),
            Stage(number=12, name="labels", value=detections.labels),
            Stage(number=12, name="boxes in pixels", value=detections.boxes_xyxy),
        ),
        scores=torch.stack([layer.scores()[0] for layer in output.layers]).cpu(),
        no_object_scores=torch.cat(no_object).cpu() if no_object else None,
        boxes=boxes,
        masks=QueryMasks.of(output, (given.pixels.shape[1], given.pixels.shape[2])),
        edge_deviations=edge_deviations([layer.edges for layer in output.layers]),
        detections=detections,
        encoder_attention=attention_by_layer(modules, calls, "encoder.layers.{}.self_attention"),
        decoder_self_attention=attention_by_layer(modules, calls, "decoder.layers.{}.self_attention"),
        decoder_cross_attention=attention_by_layer(modules, calls, "decoder.layers.{}.cross_attention"),
        comparison=comparison,
    )


def edge_deviations(layers: Sequence[Edges | None]) -> Float[Tensor, "L Q 4"] | None:
    """Return the standard deviations of the edges of one image's boxes; None if a layer has no distributions."""
    deviations = []
    for edges in layers:
        if edges is None:
            return None
        probabilities = edges.probabilities()[0]  # [Q, 4, N]
        mean = (probabilities * edges.distances).sum(-1, keepdim=True)
        variance = (probabilities * (edges.distances - mean) ** 2).sum(-1)
        deviations.append(variance.sqrt() * edges.start[0, :, 2:].repeat(1, 2))
    return torch.stack(deviations).float().cpu()


def read_one(image: Source | ImageBatch, detector: DetectionTransformer) -> tuple[Input, ImageBatch]:
    """Return one image, resized, and the batch of it.

    Raises:
        ConfigError: It is not exactly one image.
        DataError: The file does not exist.
        ImageError: The file cannot be read.
    """
    preprocessing = detector.preprocessing
    if isinstance(image, ImageBatch):
        if len(image.images) != 1:
            raise ConfigError(f"trace got a batch of {len(image.images)} images; expected one")
        return unnormalised(image, preprocessing), image
    sources = find_sources(image)
    frames = read_frames(sources[:1], pixel_range=preprocessing.pixel_range)
    inputs = list(islice(prepare(frames, preprocessing), 2))
    if len(sources) != 1 or len(inputs) != 1:
        raise ConfigError("trace got more than one image; expected one")
    return inputs[0], ImageBatch.from_images([inputs[0].pixels], preprocessing, detector.device)


def unnormalised(batch: ImageBatch, preprocessing: Preprocessing) -> Input:
    """Return the image of a batch of one, without its normalisation and padding."""
    height, width = batch.sizes[0].tolist()
    mean, std = (
        torch.tensor(values, device=batch.images.device)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    pixels = (batch.images[0, :, :height, :width] * std + mean).round().clamp(0, 255).to("cpu", torch.uint8)
    return Input(position=0, source="", size=(height, width), pixels=pixels)


def attention_by_layer(
    modules: Mapping[str, nn.Module], calls: Calls, pattern: str
) -> tuple[LayerAttention, ...]:
    """Return the attention of each layer in order, without modules of unknown type."""
    names = [name for layer in range(len(calls)) if (name := pattern.format(layer)) in calls]
    layers: list[LayerAttention] = []
    for name in names:
        module, call = modules[name], calls[name][-1]
        if isinstance(module, Attention):
            layers.append(AttentionMaps.of(module, call))
        elif isinstance(module, DeformableAttention):
            layers.append(AttentionPoints.of(module, call))
    return tuple(layers)
