"""What flows between the stages: frozen values whose types state their shapes.

Legend: B images, Q queries, C classes, K = C + 1 with "no object", D width, S memory tokens, L decoder layers,
G objects in one image, H W pixels of the padded batch. `boxes` are cxcywh in 0-1 of the unpadded image;
`boxes_xyxy` are pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
Resizing = Literal["querybox", "facebook", "huggingface", "mmdet"]
Shapes = tuple[tuple[int | torch.SymInt, int | torch.SymInt], ...]
"""(height, width) of several feature maps in cells; open, `SymInt`, while a graph for any size is traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A class as the user's data knows it. Inside the library its label is its position, 0 ... C-1."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes the model's input, and its answer boxes; part of every saved model.

    `mean` and `std` are RGB in 0-255. The short side is resized to `short_side` pixels unless the long side
    would then exceed `long_side`.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    short_side: int = 800
    long_side: int = 1333
    resizing: Resizing = "querybox"
    """Whose way of rounding sizes and of interpolating; see `querybox.data.transforms.resize`."""
    clip_boxes: bool = True
    """Whether detected boxes are cut to the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Images of one forward pass, normalised and padded right and below to one size."""

    images: Float[Tensor, "B 3 H W"]
    """Normalised pixels, RGB; zero where padded."""
    padding_mask: Bool[Tensor, "B H W"]
    """True = padding."""
    sizes: Int[Tensor, "B 2"]
    """(height, width) of each image before padding, in pixels."""
    padded: bool = True
    """False: no image is padded, which need not be read from the mask."""

    @classmethod
    def from_images(
        cls,
        images: Sequence[Image.Image | UInt8[np.ndarray, "_ _ 3"] | UInt8[Tensor, "3 _ _"]],
        preprocessing: Preprocessing = Preprocessing(),
        device: torch.device | str = "cpu",
    ) -> Self:
        """Normalise and pad RGB images of any sizes. They are not resized.

        Raises:
            ValueError: `images` is empty.
        """
        if not images:
            raise ValueError("ImageBatch.from_images got no images; it needs at least one")
        pixels, sizes = pad([as_pixels(image) for image in images])
        padded = bool((sizes != sizes[0]).any())
        return cls.from_pixels(pixels.to(device), sizes.to(device), preprocessing, padded=padded)

    @classmethod
    def from_pixels(
        cls,
        pixels: UInt8[Tensor, "B 3 H W"],
        sizes: Int[Tensor, "B 2"],
        preprocessing: Preprocessing,
        *,
        padded: bool = True,
    ) -> Self:
        """Normalise images that are already padded, on the device where they are.

        Args:
            pixels: RGB; anything where padded.
            sizes: (height, width) of each image before padding.
            preprocessing: Has mean and standard deviation.
            padded: Whether some image may be padded.
        """
        device = pixels.device
        rows = torch.arange(pixels.shape[2], device=device)[:, None] < sizes[:, 0, None, None]  # [B, H, 1]
        columns = torch.arange(pixels.shape[3], device=device) < sizes[:, 1, None, None]  # [B, 1, W]
        # non_blocking: a GPU is not waited for.
        mean = torch.tensor(preprocessing.mean).to(device, non_blocking=True)[:, None, None]
        std = torch.tensor(preprocessing.std).to(device, non_blocking=True)[:, None, None]
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format)  # [B, 3, H, W]
        images = images.sub_(mean).div_(std)
        if padded:
            images.mul_(rows[:, None].to(images)).mul_(columns[:, None].to(images))
        padding_mask = ~(rows & columns)  # [B, H, W]
        return cls(images=images, padding_mask=padding_mask, sizes=sizes, padded=padded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The objects of one image, to be found."""

    boxes: Float[Tensor, "G 4"]
    """cxcywh in 0-1 of the unpadded image."""
    labels: Int[Tensor, " G"]
    """Class of each object, 0 ... C-1."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Copy to `device`."""
        return type(self)(
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the encoder knows of the images, one token a feature cell."""

    tokens: Float[Tensor, "B S D"]
    position: Float[Tensor, "B S D"]
    padding_mask: Bool[Tensor, "B S"] | None
    """True = padding; None: nothing is padded."""
    levels: Levels | None = None
    """How the tokens make up several maps; None where there is but one (DETR)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Feature maps whose cells lie one after the other in the memory, fine to coarse; S cells in all."""

    shapes: Shapes
    """(height, width) of each map in cells."""
    sizes: Float[Tensor, "levels 2"]
    """(width, height) of each map in cells, on the device."""
    valid: Float[Tensor, "B levels 2"]
    """The share of each map's (width, height) that is image, not padding; 0-1."""
    padding_mask: Bool[Tensor, "B S"] | None
    """True = padding; None: nothing is padded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """What an encoder knows of the cells of its feature maps before it sees a feature."""

    position: Float[Tensor, "B S D"]
    """Positional encoding."""
    padding_mask: Bool[Tensor, "B S"] | None
    """True = padding; None: nothing is padded."""
    reference: Float[Tensor, "B S 2"] | None = None
    """The centre (x, y) of every cell, in 0-1 of the unpadded image; None where no layer asks for it (DETR)."""
    levels: Levels | None = None
    """How the cells make up several maps; None where there is but one (DETR)."""

    def unpadded(self) -> Cells:
        """Return the same cells without masks, for images that are known to have no padding."""
        levels = self.levels and replace(self.levels, padding_mask=None)
        return replace(self, padding_mask=None, levels=levels)

    def expand(self, batch: int) -> Cells:
        """Repeat the cells of one unpadded image for each image of a batch."""
        levels = self.levels and replace(self.levels, valid=self.levels.valid.expand(batch, -1, -1))
        reference = None if self.reference is None else self.reference.expand(batch, -1, -1)
        position = self.position.expand(batch, -1, -1)
        return replace(self, position=position, reference=reference, levels=levels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Matched pairs of all decoder layers. Every layer has M: min(Q, G) summed over the images."""

    image: Int[Tensor, " M"]
    """Which image the pair is in; the same in every layer."""
    query: Int[Tensor, "L M"]
    """The query that answers."""
    object: Int[Tensor, "L M"]
    """The object it answers for, an index into the objects of all images in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """What the decoder starts from."""

    content: Float[Tensor, "B Q D"]
    position: Float[Tensor, "B Q D"]
    reference: Float[Tensor, "B Q R"] | None = None
    """Where a query looks first, in 0-1 of the unpadded image: a point (R = 2) or a box (R = 4)."""
    proposals: Predictions | None = None
    """What the encoder proposed, where queries are made of proposals."""
    num_denoising: int = 0
    """Leading queries that the matcher never sees, for each of them is told its object (training of DINO)."""
    denoising: Matches | None = None
    """Which of them have to find their object, and which object that is."""
    blocked: Bool[Tensor, "N Q"] | None = None
    """True = the denoising query (row) may not attend to the query (column)."""
    later: Bool[Tensor, "M M"] | None = None
    """True = the query (row) may not attend to the query (column), which ranks after it; without denoising queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """One decoder layer's answer: a class and a box for every query."""

    logits: Float[Tensor, "B Q K"]
    """The last class is "no object", unless `no_object` is False."""
    boxes: Float[Tensor, "B Q 4"]
    """cxcywh in 0-1 of the unpadded image."""
    no_object: bool = True
    """Whether the classes share one softmax with "no object" (DETR); if not, each has a sigmoid of its own."""
    class_rows: tuple[int, ...] | None = None
    """The row of `logits` that belongs to each class, by label; None: all rows, less "no object"."""

    def scores(self) -> Float[Tensor, "B Q C"]:
        """Return the probability of each class, 0-1, by label."""
        logits = at_least_float32(self.logits)  # [B, Q, K]
        scores = logits.softmax(-1)[..., :-1] if self.no_object else logits.sigmoid()
        return scores if self.class_rows is None else scores[..., list(self.class_rows)]

    def no_object_scores(self) -> Float[Tensor, "B Q"] | None:
        """Return the probability of "no object", 0-1; None where the classes have a sigmoid each."""
        return at_least_float32(self.logits).softmax(-1)[..., -1] if self.no_object else None

    def queries(self, wanted: slice) -> Predictions:
        """Return those of some queries."""
        return replace(self, logits=self.logits[:, wanted], boxes=self.boxes[:, wanted])


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorOutput:
    """Predictions of every decoder layer, first to last; the last one is the detector's answer."""

    layers: tuple[Predictions, ...]
    proposals: Predictions | None = None
    """What the encoder proposed (two-stage)."""
    denoising: tuple[Predictions, ...] = ()
    """Every layer's predictions of the denoising queries (training of DINO)."""
    denoising_matches: Matches | None = None
    """The objects that they were made of."""

    @classmethod
    def of(
        cls, layers: tuple[Predictions, ...], queries: Queries, class_rows: tuple[int, ...] | None = None
    ) -> Self:
        """Split the predictions into those of denoising queries, which come first, and the others.

        Args:
            layers: Of every decoder layer.
            queries: What the decoder started from.
            class_rows: See `Predictions.class_rows`.
        """
        layers = tuple(replace(layer, class_rows=class_rows) for layer in layers)
        if queries.denoising is None:
            return cls(layers=layers, proposals=queries.proposals)
        first = queries.num_denoising
        return cls(
            layers=tuple(layer.queries(slice(first, None)) for layer in layers),
            proposals=queries.proposals,
            denoising=tuple(layer.queries(slice(first)) for layer in layers),
            denoising_matches=queries.denoising,
        )

    def without_queries(self) -> DetectorOutput:
        """Return an output of no queries at all, which contributes nothing to any loss."""
        none = slice(0)
        return replace(
            self,
            layers=tuple(layer.queries(none) for layer in self.layers),
            proposals=None if self.proposals is None else self.proposals.queries(none),
            denoising=tuple(layer.queries(none) for layer in self.denoising),
        )


def as_pixels(
    image: Image.Image | UInt8[np.ndarray, "h w 3"] | UInt8[Tensor, "3 h w"],
) -> UInt8[Tensor, "3 h w"]:
    """Return an RGB image as a uint8 tensor, channels first.

    In memory a pixel's channels stay side by side, as files have them: so an image is resized fastest.
    """
    if isinstance(image, Tensor):
        return image
    if isinstance(image, Image.Image) and image.mode != "RGB":
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)


def pad(images: Sequence[UInt8[Tensor, "3 _ _"]]) -> tuple[UInt8[Tensor, "B 3 H W"], Int[Tensor, "B 2"]]:
    """Stack images of different sizes, zero-padded right and below; also return their (height, width)."""
    sizes = torch.tensor([image.shape[1:] for image in images])  # [B, 2]
    height, width = sizes.amax(0).tolist()
    pixels = torch.empty(len(images), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)  # `as_pixels`
    for padded, image in zip(pixels, images, strict=True):
        h, w = image.shape[1:]
        padded[:, :h, :w] = image
        padded[:, h:] = 0
        padded[:, :h, w:] = 0
    return pixels, sizes


def at_least_float32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return `x` in float32, or in float64 if it is: half precision is too coarse for scores, boxes and losses."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
