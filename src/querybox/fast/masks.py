"""Faster mask heads, for inference and for training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function

from querybox.fast.convolution import FusedLinear
from querybox.fast.depthwise import gradient_of_maps
from querybox.fast.kernels import WeightedRows, convolution_gradient
from querybox.fast.replacement import is_plain
from querybox.mask_embeddings import (
    CellMasks,
    MaskEmbeddings,
    Masks,
    Window,
    cells_around,
    products,
    rows_of_queries,
)
from querybox.modules.masks import CellBlock, MaskHead
from querybox.structures import at_least_float32

ROWS = 8
"""Rows of the map that are updated together: half a megabyte in a small model, which stays in the cache."""


class CutMaskHead(MaskHead):
    """A mask head that does not compute cells that would be cut."""

    def enlarged(
        self, coarse: Float[Tensor, "B D _ _"], feature: Float[Tensor, "B _ h w"]
    ) -> Float[Tensor, "B D h w"]:
        """Enlarge the encoder's map; see `MaskHead.enlarged`."""
        if self.scale == 1:
            return self.cut(coarse, feature.shape[2], feature.shape[3])
        coarse = coarse.clone(memory_format=torch.channels_last)
        scales = (float(self.scale), float(self.scale))
        return torch.ops.aten.upsample_bilinear2d(coarse, feature.shape[2:], False, *scales)


class FusedMaskHead(CutMaskHead):
    """A mask head, in inference, with fused operations, that updates the cells when they are used."""

    @staticmethod
    def fits(head: MaskHead) -> bool:
        """Return whether the layers of cells are those of the class, and the projection can be fused."""
        return SparseMaskHead.fits(head) and type(head.lateral) is FusedLinear and is_plain(head.lateral)

    def merged(
        self, feature: Float[Tensor, "B _ h w"], coarse: Float[Tensor, "B D h w"]
    ) -> Float[Tensor, "B D h w"]:
        """Return the sum of both maps; see `MaskHead.merged`."""
        assert isinstance(self.lateral, FusedLinear)
        # Unless it is enlarged, the map of the encoder belongs to the memory.
        return self.lateral.on_map(feature, coarse if self.scale > 1 else coarse.clone())

    def masks(self, contents: Float[Tensor, "L B Q D"], cells: Float[Tensor, "B D h w"]) -> Iterable[Masks]:
        """Return the masks of every layer; see `MaskHead.masks`. `cells` are overwritten as they are used."""
        cells, around = (
            each.contiguous(memory_format=torch.channels_last)
            for each in (cells, self.block.depthwise(cells))
        )
        done = np.zeros(-(-len(cells) * cells.shape[2] // ROWS), dtype=bool)
        return [
            StripMasks(embeddings=each, cells=cells, around=around, done=done, block=self.block)
            for each in self.embedding(contents)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class StripMasks(CellMasks):
    """Embeddings of queries, and cells that pass the block when they are used, in strips of rows."""

    around: Float[Tensor, "B D h w"]
    """The depthwise convolution of the cells before the block."""
    done: Bool[np.ndarray, " S"]
    """Strips that have passed the block: `ROWS` rows of the map each, counted through all images."""
    block: CellBlock

    @torch.inference_mode()
    def updated(self, used: Bool[np.ndarray, "B h"]) -> MaskEmbeddings:
        """Return the masks with cells that have passed the block, at least in the used rows."""
        maps = (each.permute(0, 2, 3, 1) for each in (self.cells, self.around))
        strips = (each.view(-1, *each.shape[2:]).split(ROWS) for each in maps)  # S x [_, w, D]
        for number, (cells, around) in enumerate(zip(*strips, strict=True)):
            rows = slice(number * ROWS, (number + 1) * ROWS)
            if not self.done[number] and used.ravel()[rows].any():
                cells += self.block.change(around)
                self.done[number] = True
        return MaskEmbeddings(embeddings=self.embeddings, cells=self.cells)

    def whole(self) -> MaskEmbeddings:
        """Return the masks with all cells."""
        return self.updated(np.ones((len(self.cells), self.shape[0]), dtype=bool))

    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image; see `Masks.logits`."""
        return self.whole().logits(query)

    def in_windows(
        self, query: Int[Tensor, "B K"], windows: Sequence[Sequence[Window]]
    ) -> list[list[Float[np.ndarray, "_ _"]]]:
        """Return the mask logits of the first queries of each image in windows; see `Masks.in_windows`."""
        used = np.zeros((len(self.cells), self.shape[0]), dtype=bool)
        for image, each in zip(used, windows, strict=True):
            for rows, _ in each:
                image[rows] = True
        return self.updated(used).in_windows(query, windows)

    @classmethod
    def at_points(
        cls, layers: Sequence[Self], queries: Sequence[Int[Tensor, "L _"]], points: Float[Tensor, "B P 2"]
    ) -> Iterator[Float[Tensor, "L _ P"]]:
        """Yield for each image the logits of some of its queries at points; see `ComputedMasks.at_points`."""
        return MaskEmbeddings.at_points([layer.whole() for layer in layers], queries, points)


class SparseMaskHead(CutMaskHead):
    """A mask head, in training, that updates the cells and embeds the queries that are compared."""

    @staticmethod
    def fits(head: MaskHead) -> bool:
        """Return whether the layers of cells and queries are those of the class."""
        return is_plain(head) and all(
            map(is_plain, itertools.chain(head.block.modules(), head.embedding.modules()))
        )

    def masks(self, contents: Float[Tensor, "L B Q D"], cells: Float[Tensor, "B D h w"]) -> Iterable[Masks]:
        """Return the masks of every layer; see `MaskHead.masks`."""
        return [SparseMasks(embeddings=each, cells=at_least_float32(cells), head=self) for each in contents]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMasks(CellMasks):
    """What masks are computed from: contents of queries instead of embeddings, and cells before the head's block."""

    head: SparseMaskHead

    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image; see `Masks.logits`."""
        embeddings, cells = self.head.embedding(self.embeddings), self.head.block(self.cells)
        return MaskEmbeddings(embeddings=embeddings, cells=cells).logits(query)

    @classmethod
    def at_points(
        cls, layers: Sequence[Self], queries: Sequence[Int[Tensor, "L _"]], points: Float[Tensor, "B P 2"]
    ) -> Iterator[Float[Tensor, "L _ P"]]:
        """Yield for each image the logits of some of its queries at points; see `ComputedMasks.at_points`."""
        first = layers[0]
        index, weights = cells_around(points, first.shape)
        used = torch.zeros(len(points) * math.prod(first.shape), dtype=torch.bool)
        used[index.flatten()] = True
        depthwise = first.head.block.depthwise
        index_of_used = used.nonzero()[:, 0]  # [M]
        cells, around = CellsAndAround.apply(first.cells, depthwise.weight, depthwise.bias, index_of_used)
        rows = (used.cumsum(0) - 1).int()[index.flatten(0, 1)]  # of each point, [B P, 4]
        updated = (cells + first.head.block.change(around)).to(weights.dtype)
        at_points = WeightedRows.apply(rows[None], updated[None], weights.flatten(0, 1)[None])
        contents = rows_of_queries([layer.embeddings for layer in layers], queries)
        embeddings = first.head.embedding(torch.cat(contents, 1))
        return products(
            embeddings.split([each.shape[1] for each in contents], 1), at_points.view(*points.shape[:2], -1)
        )


class CellsAndAround(Function):
    """Some cells of maps, and the results of a depthwise 3x3 convolution at them."""

    @staticmethod
    def forward(
        ctx: Any,
        cells: Float[Tensor, "B D h w"],
        weight: Float[Tensor, "D 1 3 3"],
        bias: Float[Tensor, " D"],
        index: Int[Tensor, " M"],
    ) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M D"]]:
        """Return the cells with these different indices, counted row by row, image by image, and the results."""
        ctx.save_for_backward(cells, weight, index)
        with torch.autocast("cpu", enabled=False):
            around = F.conv2d(cells, weight, bias, padding=1, groups=len(weight))
        return table(cells).index_select(0, index), table(around).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of cells, weight and bias."""
        (cells, weight, index), (of_rows, of_around) = ctx.saved_tensors, gradients
        scattered = torch.zeros_like(table(cells)).index_copy_(0, index, of_around)
        of_maps = scattered.view(len(cells), *cells.shape[2:], -1).permute(0, 3, 1, 2)
        of_weight = convolution_gradient("weight", of_maps, cells, weight, padding=(1, 1), groups=len(weight))
        of_cells = gradient_of_maps(of_maps, cells, weight, padding=(1, 1))
        of_cells = of_cells.contiguous(memory_format=torch.channels_last)
        table(of_cells).index_add_(0, index, of_rows)
        return of_cells, of_weight, of_around.sum(0), None


def table(maps: Float[Tensor, "B D h w"]) -> Float[Tensor, "N D"]:
    """Return the cells of maps, row by row, image by image."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
