"""Masks that a detector predicts, of which the logits are computed only where they are needed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from querybox.errors import ConfigError

MASK_STRIDE = 4
"""Stride in pixels of the map of masks."""
SMALL = 8
"""Area of the windows of an image, in maps, up to which products with their cells alone take less time than those with
all cells, on a CPU."""

Window = tuple[slice, slice]
"""Rows and columns of a map."""


class Masks(ABC):
    """Masks of the queries of a decoder layer, on a map with a stride of `MASK_STRIDE` pixels in the padded images."""

    __slots__ = ()

    @abstractmethod
    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image: positive where the object is."""

    def in_windows(
        self, query: Int[Tensor, "B K"], windows: Sequence[Sequence[Window]]
    ) -> list[list[Float[np.ndarray, "_ _"]]]:
        """Return the mask logits of the first queries of each image in windows, one for each query."""
        logits = as_array(self.logits(query))
        return [
            [each[window] for each, window in zip(maps, image, strict=False)]
            for maps, image in zip(logits, windows, strict=True)
        ]

    @abstractmethod
    def of_queries(self, index: slice) -> Self:
        """Return the masks of a slice of the queries."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(height, width) of the map in cells."""


class ComputedMasks(Masks):
    """Masks of all queries, as a detector computes them; for losses."""

    __slots__ = ()

    @classmethod
    @abstractmethod
    def at_points(
        cls, layers: Sequence[Self], queries: Sequence[Int[Tensor, "L _"]], points: Float[Tensor, "B P 2"]
    ) -> Iterator[Float[Tensor, "L _ P"]]:
        """Yield for each image the logits of some of its queries at points, bilinearly interpolated.

        Args:
            layers: The masks of every layer.
            queries: For each image the queries, in every layer.
            points: (x, y) in -1 to 1 of the padded images.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CellMasks(ComputedMasks):
    """Masks from embeddings of queries and of cells."""

    embeddings: Float[Tensor, "B Q D"]
    """Embedding of each query, or what it is computed from."""
    cells: Float[Tensor, "B D h w"]
    """Embedding of each cell of the map, the same in every layer, or what it is computed from."""

    def of_queries(self, index: slice) -> Self:
        """Return the masks of a slice of the queries."""
        return replace(self, embeddings=self.embeddings[:, index])

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the map in cells."""
        return self.cells.shape[2], self.cells.shape[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskEmbeddings(CellMasks):
    """Embeddings whose products are the mask logits (MaskFormer, Cheng et al. 2021)."""

    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image; see `Masks.logits`."""
        return (self.rows(query) @ self.cells.flatten(2)).unflatten(2, self.cells.shape[2:])

    def rows(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """Return the embeddings of some queries of each image."""
        return self.embeddings.gather(1, query[..., None].expand(-1, -1, self.embeddings.shape[2]))

    @torch.inference_mode()
    def in_windows(
        self, query: Int[Tensor, "B K"], windows: Sequence[Sequence[Window]]
    ) -> list[list[Float[np.ndarray, "_ _"]]]:
        """Return the mask logits of the first queries of each image in windows; see `Masks.in_windows`."""
        area = sum(
            (rows.stop - rows.start) * (columns.stop - columns.start)
            for image in windows
            for rows, columns in image
        )
        if self.cells.device.type != "cpu" or area > SMALL * len(windows) * math.prod(self.shape):
            return Masks.in_windows(self, query, windows)
        # Not by NumPy: the threads of its OpenBLAS go on to spin for 40 ms, which PyTorch's have to wait for.
        dtype = torch.promote_types(self.cells.dtype, torch.float32)
        cells, rows = self.cells.to(dtype).permute(0, 2, 3, 1), self.rows(query).to(dtype)
        return [
            [(grid[window] @ row).numpy() for row, window in zip(each.unbind(), image, strict=False)]
            for grid, each, image in zip(cells, rows, windows, strict=True)  # [h, w, D], [K, D]
        ]

    @classmethod
    def at_points(
        cls, layers: Sequence[Self], queries: Sequence[Int[Tensor, "L _"]], points: Float[Tensor, "B P 2"]
    ) -> Iterator[Float[Tensor, "L _ P"]]:
        """Yield for each image the logits of some of its queries at points; see `ComputedMasks.at_points`.

        The cells are interpolated instead of the logits, which is the same.
        """
        rows = rows_of_queries([layer.embeddings for layer in layers], queries)
        return products(rows, sample_rows(layers[0].cells, points))


def rows_of_queries(
    layers: Sequence[Float[Tensor, "B Q D"]], queries: Sequence[Int[Tensor, "L _"]]
) -> list[Float[Tensor, "L _ D"]]:
    """Return for each image the rows of some of its queries, in every layer."""
    images = torch.stack(list(layers), 1).unbind()  # B x [L, Q, D]
    return [
        rows.gather(1, query[..., None].expand(-1, -1, rows.shape[2]))
        for rows, query in zip(images, queries, strict=True)
    ]


def products(
    embeddings: Sequence[Float[Tensor, "L _ D"]], cells: Float[Tensor, "B P D"]
) -> Iterator[Float[Tensor, "L _ P"]]:
    """Yield for each image the products of embeddings of queries and of cells."""
    # Unbound once: the gradient of an index of the batch is as large as all of it.
    for rows, each in zip(embeddings, cells.unbind(), strict=True):
        yield rows @ each.T


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskLogits(Masks):
    """Mask logits of some of the queries, as an exported model computes them."""

    maps: Float[Tensor, "B M h w"]
    """Mask logits of M queries."""
    index: Int[Tensor, "B Q"]
    """Index into `maps` of each query; -1 for one without a mask."""

    @classmethod
    def of(cls, maps: Float[Tensor, "B M h w"], query: Int[Tensor, "B M"], queries: int) -> Self:
        """Create the masks from the index of the query of each, of `queries` in all; one may occur repeatedly."""
        index = torch.full((len(maps), queries), -1, dtype=torch.long, device=maps.device)
        order = torch.arange(maps.shape[1], device=maps.device).expand_as(query)
        return cls(maps=maps, index=index.scatter(1, query, order))

    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image; see `Masks.logits`.

        Raises:
            ConfigError: A query has no mask.
        """
        rows = self.index.gather(1, query)
        if (rows < 0).any():
            raise ConfigError(
                f"the exported model has masks of the {self.maps.shape[1]} highest-scoring detections of an image, and "
                "more were to be returned: pass top_k=100, or a higher threshold"
            )
        return self.maps[torch.arange(len(rows), device=rows.device)[:, None], rows]

    def of_queries(self, index: slice) -> Self:
        """Return the masks of a slice of the queries."""
        return replace(self, index=self.index[:, index])

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the map in cells."""
        return self.maps.shape[2], self.maps.shape[3]


def as_array(x: Float[Tensor, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return a tensor as an array, half precision in float32, because NumPy has no bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).cpu().numpy()


def sample(maps: Float[Tensor, "B _ h w"], points: Float[Tensor, "B P 2"]) -> Float[Tensor, "B _ P"]:
    """Return maps at points (x, y) in -1 to 1, bilinearly interpolated; beyond an edge, the cells at it go on."""
    grid = points.to(maps.dtype)[:, None]  # [B, 1, P, 2]
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0]


def sample_rows(maps: Float[Tensor, "B D h w"], points: Float[Tensor, "B P 2"]) -> Float[Tensor, "B P D"]:
    """Return the same as `sample`, with the features last: of a map that has them last in memory, it is a sum of rows.

    Its gradient has them last, too, and takes half as long as that of `grid_sample`.
    """
    index, weights = cells_around(points, (maps.shape[2], maps.shape[3]))
    return sum_rows(maps.permute(0, 2, 3, 1).flatten(0, 2), index, weights)


def cells_around(
    points: Float[Tensor, "B P 2"], shape: tuple[int, int]
) -> tuple[Int[Tensor, "B P 4"], Float[Tensor, "B P 4"]]:
    """Return the four cells around points (x, y) in -1 to 1, and their weights.

    Args:
        points: Points of each image.
        shape: (height, width) of the maps in cells, which are counted row by row, image by image.
    """
    height, width = shape
    x, y = points.unbind(2)
    columns, right = cells_on_axis(x, width)  # [B, P, 2]
    rows, lower = cells_on_axis(y, height)
    first = torch.arange(len(points), device=points.device)[:, None, None, None] * (height * width)
    index = first + rows[..., None] * width + columns[..., None, :]  # [B, P, 2, 2]
    return index.flatten(2), (lower[..., None] * right[..., None, :]).flatten(2)


def sum_rows(
    table: Float[Tensor, "N D"], index: Int[Tensor, "B P 4"], weights: Float[Tensor, "B P 4"]
) -> Float[Tensor, "B P D"]:
    """Return weighted sums of rows of a table."""
    weights = weights.to(table.dtype).view(-1, 4)
    sums = F.embedding_bag(index.view(-1, 4), table, per_sample_weights=weights, mode="sum")
    return sums.unflatten(0, index.shape[:2])


def cells_on_axis(
    places: Float[Tensor, "B P"], size: int
) -> tuple[Int[Tensor, "B P 2"], Float[Tensor, "B P 2"]]:
    """Return the two cells around places in -1 to 1 on an axis with `size` cells, and their weights."""
    cells = ((places + 1) * (size / 2) - 0.5).clamp(0, size - 1)
    weight = cells - cells.floor()
    first = cells.long()
    return torch.stack([first, (first + 1).clamp(max=size - 1)], 2), torch.stack([1 - weight, weight], 2)
