"""Faster mask heads, for inference and for training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from querybox.fast.convolution import FusedLinear
from querybox.fast.kernels import Rows
from querybox.fast.replacement import is_plain
from querybox.mask_embeddings import (
    CellMasks,
    MaskEmbeddings,
    Masks,
    Window,
    cells_around,
    products,
    sum_rows,
)
from querybox.modules.masks import CellBlock, MaskHead

ROWS = 8
"""Rows of the map that are updated together: half a megabyte in a small model, which stays in the cache."""


class FusedMaskHead(MaskHead):
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

    def masks(self, embeddings: Float[Tensor, "L B Q D"], cells: Float[Tensor, "B D h w"]) -> Iterable[Masks]:
        """Return the masks of every layer; see `MaskHead.masks`. `cells` are overwritten as they are used."""
        cells, around = (
            each.contiguous(memory_format=torch.channels_last)
            for each in (cells, self.block.depthwise(cells))
        )
        done = np.zeros(-(-len(cells) * cells.shape[2] // ROWS), dtype=bool)
        return [
            StripMasks(embeddings=each, cells=cells, around=around, done=done, block=self.block)
            for each in embeddings
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


class SparseMaskHead(MaskHead):
    """A mask head, in training, that updates the cells of the map that are compared."""

    @staticmethod
    def fits(head: MaskHead) -> bool:
        """Return whether the layers of cells are those of the class."""
        return is_plain(head) and all(map(is_plain, head.block.modules()))

    def masks(self, embeddings: Float[Tensor, "L B Q D"], cells: Float[Tensor, "B D h w"]) -> Iterable[Masks]:
        """Return the masks of every layer; see `MaskHead.masks`."""
        around = self.block.depthwise(cells)
        return [
            SparseMasks(embeddings=each, cells=cells, around=around, block=self.block) for each in embeddings
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseMasks(CellMasks):
    """Embeddings of queries, and what those of the cells are computed from: `cells` have not passed the block."""

    around: Float[Tensor, "B D h w"]
    """Their depthwise convolution."""
    block: CellBlock

    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image; see `Masks.logits`."""
        change = self.block.change(self.around.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return MaskEmbeddings(embeddings=self.embeddings, cells=self.cells + change).logits(query)

    @classmethod
    def at_points(
        cls, layers: Sequence[Self], queries: Sequence[Int[Tensor, "L _"]], points: Float[Tensor, "B P 2"]
    ) -> Iterator[Float[Tensor, "L _ P"]]:
        """Yield for each image the logits of some of its queries at points; see `ComputedMasks.at_points`."""
        first = layers[0]
        index, weights = cells_around(points, first.shape)
        used = torch.zeros(len(points) * math.prod(first.shape), dtype=torch.bool)
        used[index.flatten()] = True
        tables = (
            each.permute(0, 2, 3, 1).flatten(0, 2) for each in (first.cells, first.around)
        )  # [B h w, D]
        cells, around = (Rows.apply(each, used.nonzero()[:, 0]) for each in tables)
        order = used.cumsum(0) - 1
        embeddings = torch.stack([layer.embeddings for layer in layers])
        return products(
            embeddings, queries, sum_rows(cells + first.block.change(around), order[index], weights)
        )
