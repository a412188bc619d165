"""The values passed between the stages: frozen dataclasses whose types state their shapes.

Legend: B images, Q queries, C classes, K = C + 1 with "no object", D width, S memory tokens, L decoder layers, G
objects of an image, H W pixels of the padded batch. `boxes`: cxcywh in 0-1 of the unpadded image; `boxes_xyxy`: pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from querybox.arguments import (
    MAX_AREA,
    is_range,
    require_device,
    require_fractions,
    require_number,
    require_type,
)
from querybox.edges import Edges
from querybox.errors import ConfigError
from querybox.levels import Levels
from querybox.mask_embeddings import Masks
from querybox.object_sides import ObjectSides
from querybox.pixels import as_pixels, pad

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
MAX_CLASSES = 2**16
"""Maximum number of classes of a detector, three times those of ImageNet-21k."""
STD_RANGE = (1e-2, 1e4)
"""Range of standard deviations of pixels of 0-255."""
Resizing = Literal["querybox", "facebook", "huggingface", "mmdet", "stretch"]
PixelRange = tuple[float, float]
"""The pixel values that become 0 and 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A class of the dataset. Inside the library a class is identified by its label, its index 0 ... C-1."""

    id: int
    name: str
    stuff: bool = False
    """Whether it is a region such as sky, of which an image has at most one segment (COCO's `isthing` 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Resizing and normalisation of images and clipping of boxes; saved with every model.

    `mean` and `std` are RGB in 0-255. The short side is resized to `short_side` pixels, or less if the long side would
    otherwise exceed `long_side`.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    short_side: int = 800
    long_side: int = 1333
    resizing: Resizing = "querybox"
    """The library whose rounding of sizes and interpolation is used, or "stretch" to resize every image to a height of
    `short_side` and a width of `long_side`, whatever its aspect ratio; see `querybox.data.transforms.resize`."""
    clip_boxes: bool = True
    """Whether detected boxes are clipped to the image."""
    pixel_range: PixelRange | None = None
    """Pixel values of images with more than 8 bits that become 0 and 255; values beyond are clipped. None for the range
    that the file can have: 0 to 65535, or that of the bits that a TIFF states."""
    object_sides: ObjectSides | None = None
    """Sizes of the objects that the model was trained on; None if they are not known."""

    def __post_init__(self) -> None:
        """Check all numbers, which may be those of a file from a stranger, and the name of the resizing.

        Raises:
            ConfigError: A number is of another type, not finite, or out of range; or the resizing is unknown.
        """
        where = "Preprocessing"
        if self.resizing not in (known := get_args(Resizing)):
            raise ConfigError(f"{where} got resizing={self.resizing!r}; expected one of {', '.join(known)}")
        for name, side in (("short_side", self.short_side), ("long_side", self.long_side)):
            require_number(where, name, side, 1, MAX_AREA, whole=True)
        if self.short_side * self.long_side > MAX_AREA:
            raise ConfigError(
                f"{where} got short_side={self.short_side} and long_side={self.long_side}; expected a product of at "
                f"most {MAX_AREA:,} pixels"
            )
        for name, values, low, high in (("mean", self.mean, 0, 255), ("std", self.std, *STD_RANGE)):
            if not isinstance(values, tuple) or len(values) != 3:
                raise ConfigError(f"{where} got {name}={values!r}; expected a tuple of three numbers")
            for value in values:
                require_number(where, name, value, low, high)
        if self.pixel_range is not None and not is_range(self.pixel_range):
            wrong = f"{where} got pixel_range={self.pixel_range!r}"
            raise ConfigError(f"{wrong}; expected two finite numbers, the lower first")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageBatch:
    """Images of one forward pass, normalised and padded at the right and bottom to the same size."""

    images: Float[Tensor, "B 3 H W"]
    """Normalised RGB pixels; zero where padded."""
    padding_mask: Bool[Tensor, "B H W"]
    """True = padding."""
    sizes: Int[Tensor, "B 2"]
    """(height, width) of each image before padding, in pixels."""
    padded: bool = True
    """Whether any image may be padded; if False, the mask need not be evaluated."""

    def __post_init__(self) -> None:
        """Check types and shapes.

        Raises:
            ConfigError: `images`, `padding_mask` or `sizes` are not such tensors.
        """
        images, mask, sizes = self.images, self.padding_mask, self.sizes
        for name, value in (("images", images), ("padding_mask", mask), ("sizes", sizes)):
            require_type(f"ImageBatch.{name}", value, Tensor, "a tensor: use ImageBatch.from_images(images)")
        types = images.is_floating_point() and mask.dtype == torch.bool
        b, hw = images.shape[:1], images.shape[2:]
        shapes = (images.shape, mask.shape, sizes.shape) == ((*b, 3, *hw), (*b, *hw), (*b, 2))
        if not (types and images.ndim == 4 and shapes):
            raise ConfigError(
                f"ImageBatch got images {list(images.shape)} of {images.dtype}, a padding mask {list(mask.shape)} of "
                f"{mask.dtype} and sizes {list(sizes.shape)}; expected normalised images [B, 3, H, W], a mask "
                "[B, H, W] of torch.bool and sizes [B, 2]: use ImageBatch.from_images(images)"
            )

    @classmethod
    def from_images(
        cls,
        images: Sequence[Image.Image | npt.NDArray[Any] | Tensor],
        preprocessing: Preprocessing = Preprocessing(),
        device: torch.device | str = "cpu",
    ) -> Self:
        """Normalise and pad RGB images of any size. They are not resized.

        Args:
            images: PIL images (turned upright by their EXIF data), uint8 arrays ``[h, w, 3]`` or tensors ``[3, h, w]``.
            preprocessing: Mean and standard deviation.
            device: Where the batch is made.

        Raises:
            ConfigError: `images` is not a sequence, or empty; or PyTorch has no such device.
            ImageError: An image has another type, shape or depth.
        """
        require_type("from_images", images, Sequence, "a list of images")
        require_type("from_images", preprocessing, Preprocessing, "a Preprocessing: detector.preprocessing")
        if not images:
            raise ConfigError("from_images got no images; expected at least one")
        device = require_device("from_images", device)
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
        """Normalise padded images on their device.

        Args:
            pixels: RGB; arbitrary values where padded.
            sizes: (height, width) of each image before padding, in pixels.
            preprocessing: Mean and standard deviation.
            padded: Whether any image may be padded.
        """
        device = pixels.device
        rows = torch.arange(pixels.shape[2], device=device)[:, None] < sizes[:, 0, None, None]  # [B, H, 1]
        columns = torch.arange(pixels.shape[3], device=device) < sizes[:, 1, None, None]  # [B, 1, W]
        # non_blocking, so that the host does not wait for a GPU.
        mean = torch.tensor(preprocessing.mean, device="cpu").to(device, non_blocking=True)[:, None, None]
        std = torch.tensor(preprocessing.std, device="cpu").to(device, non_blocking=True)[:, None, None]
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format)  # [B, 3, H, W]
        images = images.sub_(mean).div_(std)
        if padded:
            images.mul_(rows[:, None].to(images)).mul_(columns[:, None].to(images))
        padding_mask = ~(rows & columns)  # [B, H, W]
        return cls(images=images, padding_mask=padding_mask, sizes=sizes, padded=padded)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """The ground-truth objects of one image."""

    boxes: Float[Tensor, "G 4"]
    """cxcywh in 0-1 of the unpadded image."""
    labels: Int[Tensor, " G"]
    """Class of each object, 0 ... C-1."""
    masks: Bool[Tensor, "G h w"] | None = None
    """Pixels of each object, at the size of the unpadded image in the batch. None if they are not known: the image is
    then excluded from the mask losses."""

    def __post_init__(self) -> None:
        """Check types and shapes, and values that are on the CPU.

        Raises:
            ConfigError: `boxes`, `labels` or `masks` are not such tensors.
        """
        given = {"boxes": self.boxes, "labels": self.labels}
        if self.masks is not None:
            given["masks"] = self.masks
        for name, value in given.items():
            require_type(f"Target.{name}", value, Tensor, "a tensor: torch.tensor(...)")
        boxes, labels = list(self.boxes.shape), list(self.labels.shape)
        types = self.boxes.is_floating_point() and self.labels.dtype == torch.int64
        if not types or boxes != [*labels, 4] or len(labels) != 1:
            raise ConfigError(
                f"Target got boxes {boxes} of {self.boxes.dtype} and labels {labels} of {self.labels.dtype}; expected "
                "[G, 4] floating-point numbers and G integers of torch.int64: boxes.float(), labels.long()"
            )
        if self.masks is not None and (
            self.masks.dtype != torch.bool or self.masks.ndim != 3 or len(self.masks) != len(self.labels)
        ):
            raise ConfigError(
                f"Target got masks {list(self.masks.shape)} of {self.masks.dtype} for {len(self.labels)} objects; "
                "expected [G, height, width] of torch.bool: masks.bool()"
            )
        for name, value in given.items():
            if value.device != self.labels.device:
                raise ConfigError(
                    f"Target got {name} on {value.device} and labels on {self.labels.device}; expected the same device"
                )
        if self.boxes.device.type != "cpu" or not len(self.labels):
            return
        low, high = self.boxes.detach().aminmax()  # both are NaN if any value is
        require_fractions("Target", float(low), float(high))
        if (lowest := int(self.labels.min())) < 0:
            raise ConfigError(f"Target got the label {lowest}; expected 0 to C-1 for C classes")

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Copy to `device`."""
        return type(self)(
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            masks=None if self.masks is None else self.masks.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Memory:
    """The encoder's output: one token per cell of the feature maps."""

    tokens: Float[Tensor, "B S D"]
    position: Float[Tensor, "B S D"] | None = None
    """Positional encoding; None if no decoder layer uses it (RT-DETR)."""
    padding_mask: Bool[Tensor, "B S"] | None
    """True = padding; None if nothing is padded."""
    levels: Levels | None = None
    """The feature maps that the tokens belong to; None if there is only one (DETR)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """Matched pairs of queries and objects in all decoder layers. M is min(Q, G) summed over the images."""

    image: Int[Tensor, " M"]
    """Index of the image of each pair; the same in every layer."""
    query: Int[Tensor, "L M"]
    """Index of the matched query in its image."""
    object: Int[Tensor, "L M"]
    """Index of the matched object among the objects of all images, concatenated."""
    repeats: int = 1
    """Number of queries that are matched to each object: 1, or the number of groups of denoising queries."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Queries:
    """The object queries that the decoder starts from."""

    content: Float[Tensor, "B Q D"]
    position: Float[Tensor, "B Q D"]
    reference: Float[Tensor, "B Q R"] | None = None
    """Initial reference points (R = 2) or reference boxes (R = 4), in 0-1 of the unpadded image."""
    proposals: Predictions | None = None
    """The encoder's proposals, if the queries were selected from them (two-stage)."""
    num_denoising: int = 0
    """Number of denoising queries, which come first and are not matched, because their objects are given (DINO)."""
    denoising: Matches | None = None
    """The positive denoising queries, with the object that each has to reconstruct."""
    denoising_mask: Bool[Tensor, "N Q"] | None = None
    """Self-attention mask of the N denoising queries: True = the query (row) may not attend to the query (column)."""
    causal_mask: Bool[Tensor, "M M"] | None = None
    """Self-attention mask of the M other queries: True = the query (row) may not attend to the query (column), because
    it ranks later."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """The predictions of one decoder layer: class logits and a box for every query."""

    logits: Float[Tensor, "B Q K"]
    """Class logits; the last one is the no-object class, unless `no_object` is False."""
    boxes: Float[Tensor, "B Q 4"]
    """cxcywh in 0-1 of the unpadded image."""
    no_object: bool = True
    """Whether scores are a softmax over classes and no-object (DETR), or a sigmoid per class."""
    class_rows: tuple[int, ...] | None = None
    """Index into the last dimension of `logits` of each class, by label; None for all but no-object, in order.
    Proposals of objects of any class have one class, in row 0."""
    edges: Edges | None = None
    """The distributions that the boxes are the means of (D-FINE)."""
    initial: Predictions | None = None
    """Predictions of the same layer without distributions, whose boxes they start from (first layer of D-FINE)."""
    content: Float[Tensor, "B Q D"] | None = None
    """Content of the queries that the heads were given; None for proposals and exported models."""
    masks: Masks | None = None
    """Masks of the objects; None if the detector has no mask head, or one for the last layer alone."""

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return self.logits.shape[2] - self.no_object if self.class_rows is None else len(self.class_rows)

    def scores(self) -> Float[Tensor, "B Q C"]:
        """Return the probability of each class, 0-1, by label."""
        logits = at_least_float32(self.logits)  # [B, Q, K]
        scores = logits.softmax(-1)[..., :-1] if self.no_object else logits.sigmoid()
        return scores if self.class_rows is None else scores[..., list(self.class_rows)]

    def no_object_scores(self) -> Float[Tensor, "B Q"] | None:
        """Return the probability of no-object, 0-1; None if scores are a sigmoid per class."""
        return at_least_float32(self.logits).softmax(-1)[..., -1] if self.no_object else None

    def of_queries(self, index: slice) -> Predictions:
        """Return the predictions of a slice of the queries."""
        return replace(
            self,
            logits=self.logits[:, index],
            boxes=self.boxes[:, index],
            edges=self.edges and self.edges.of_queries(index),
            initial=self.initial and self.initial.of_queries(index),
            content=None if self.content is None else self.content[:, index],
            masks=self.masks and self.masks.of_queries(index),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectorOutput:
    """Predictions of every decoder layer, first to last; detections are made from the last one."""

    layers: tuple[Predictions, ...]
    proposals: Predictions | None = None
    """The encoder's proposals (two-stage)."""
    denoising: tuple[Predictions, ...] = ()
    """Predictions of the denoising queries of every layer (training of DINO)."""
    denoising_matches: Matches | None = None
    """The objects that the denoising queries have to reconstruct."""

    @classmethod
    def of(
        cls, layers: tuple[Predictions, ...], queries: Queries, class_rows: tuple[int, ...] | None = None
    ) -> Self:
        """Create the output, separating the predictions of denoising queries from the others.

        Args:
            layers: Predictions of every decoder layer, for all queries.
            queries: The queries that the decoder started from.
            class_rows: See `Predictions.class_rows`.
        """
        layers = tuple(replace(layer, class_rows=class_rows) for layer in layers)
        proposals = queries.proposals
        if proposals is not None and proposals.class_rows is None:
            proposals = replace(proposals, class_rows=class_rows)
        if queries.denoising is None:
            return cls(layers=layers, proposals=proposals)
        first = queries.num_denoising
        return cls(
            layers=tuple(layer.of_queries(slice(first, None)) for layer in layers),
            proposals=proposals,
            denoising=tuple(layer.of_queries(slice(first)) for layer in layers),
            denoising_matches=queries.denoising,
        )

    def without_queries(self) -> DetectorOutput:
        """Return the output with zero queries, whose losses are 0."""
        empty = slice(0)
        return replace(
            self,
            layers=tuple(layer.of_queries(empty) for layer in self.layers),
            proposals=None if self.proposals is None else self.proposals.of_queries(empty),
            denoising=tuple(layer.of_queries(empty) for layer in self.denoising),
        )


def at_least_float32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert half precision to float32, because it is too coarse for scores, boxes and losses; keep float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
